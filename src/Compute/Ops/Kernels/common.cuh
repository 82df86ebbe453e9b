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
// A store that leaves the cache first.
__device__ __forceinline__ void store_once(elem* p, const Pack& x)
{
    const u32* words = reinterpret_cast<const u32*>(&x);
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" :: "l"(p), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

// A pack in fp32 and back. Two values are rounded by one instruction: a kernel that rounds each by its own is bound by that, not by memory.
__device__ __forceinline__ void unpack(const Pack& p, float* x)
{
#if ELEMENT == 2
    for (int j = 0; j < VEC; j++) x[j] = p.v[j];
#else
    const u32* words = reinterpret_cast<const u32*>(&p);
    for (int j = 0; j < VEC / 2; j++)
    {
#if ELEMENT == 0
        x[2 * j] = __uint_as_float(words[j] << 16);
        x[2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
#else
        asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}" : "=f"(x[2 * j]), "=f"(x[2 * j + 1]) : "r"(words[j]));
#endif
    }
#endif
}
__device__ __forceinline__ Pack pack(const float* x)
{
    Pack p;
#if ELEMENT == 2
    for (int j = 0; j < VEC; j++) p.v[j] = x[j];
#else
    u32* words = reinterpret_cast<u32*>(&p);
    for (int j = 0; j < VEC / 2; j++)
#if ELEMENT == 0
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[j]) : "f"(x[2 * j + 1]), "f"(x[2 * j]));
#else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(words[j]) : "f"(x[2 * j + 1]), "f"(x[2 * j]));
#endif
#endif
    return p;
}
// Each value as the element type holds it.
__device__ __forceinline__ void round_all(float* x) { unpack(pack(x), x); }

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
