// Element types and vector access, put in front of every kernel file. ELEMENT: 0 bf16, 1 fp16, 2 fp32. Written without CUDA headers, which
// the run-time compiler does not bring. Arithmetic is fp32; values are rounded once, when they are stored.
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#if ELEMENT == 2
typedef float elem;
#define VEC 4
__device__ __forceinline__ float up(elem x) { return x; }
__device__ __forceinline__ elem down(float x) { return x; }
#else
typedef u16 elem;
#define VEC 8
#if ELEMENT == 0
__device__ __forceinline__ float up(elem x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ elem down(float x) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
#else
__device__ __forceinline__ float up(elem x) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x)); return r; }
__device__ __forceinline__ elem down(float x) { u16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
#endif
#endif

// 16 bytes: VEC elements that are loaded and stored at once.
struct alignas(16) Pack { elem v[VEC]; };
__device__ __forceinline__ Pack load(const elem* p) { return *reinterpret_cast<const Pack*>(p); }
__device__ __forceinline__ void store(elem* p, const Pack& x) { *reinterpret_cast<Pack*>(p) = x; }

__device__ __forceinline__ float warp_sum(float x)
{
    for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
    return x;
}
__device__ __forceinline__ float warp_max(float x)
{
    for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
    return x;
}
// Sum over the block; every thread gets it. Needs 33 floats of shared memory.
__device__ __forceinline__ float block_sum(float x, float* shared)
{
    x = warp_sum(x);
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    __syncthreads();
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    if (warp == 0) { float y = lane < warps ? shared[lane] : 0.f; y = warp_sum(y); if (lane == 0) shared[32] = y; }
    __syncthreads();
    return shared[32];
}
__device__ __forceinline__ float block_max(float x, float* shared)
{
    x = warp_max(x);
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    __syncthreads();
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    if (warp == 0) { float y = lane < warps ? shared[lane] : -3.4e38f; y = warp_max(y); if (lane == 0) shared[32] = y; }
    __syncthreads();
    return shared[32];
}
