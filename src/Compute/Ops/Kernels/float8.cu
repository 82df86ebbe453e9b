// Rounding to float8 with one scale for a matrix. Two values make one 16-bit word, the first in its low byte.
struct E4M3
{
    static __device__ __forceinline__ float largest() { return 448.f; }
    static __device__ __forceinline__ u32 pair(float first, float second)
    {
        u16 r;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(second), "f"(first));
        return r;
    }
};
struct E5M2
{
    static __device__ __forceinline__ float largest() { return 57344.f; }
    static __device__ __forceinline__ u32 pair(float first, float second)
    {
        u16 r;
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(r) : "f"(second), "f"(first));
        return r;
    }
};

// The bits of floats that are not negative have the order of the floats. NaN is passed over here and stays NaN when it is rounded.
extern "C" __global__ void largest_magnitude(const elem* x, i64 count, u32* result)
{
    __shared__ float shared[33];
    float largest = 0.f;
    i64 stride = (i64)gridDim.x * blockDim.x * VEC, i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    for (; i + 3 * stride < count; i += 4 * stride)
    {
        Pack p[4];
        for (int k = 0; k < 4; k++) p[k] = load(x + i + k * stride);
        for (int k = 0; k < 4; k++)
            for (int j = 0; j < VEC; j++) largest = fmaxf(largest, fabsf(up(p[k].v[j])));
    }
    for (; i < count; i += stride)
    {
        Pack p = load(x + i);
        for (int j = 0; j < VEC; j++) largest = fmaxf(largest, fabsf(up(p.v[j])));
    }
    largest = block_max(largest, shared);
    if (threadIdx.x == 0) atomicMax(result, __float_as_uint(largest));
}

// A block rounds a tile of 128 × 128. A thread takes 4 rows of 8 columns at a time, so that it has 4 bytes that lie together in a row of the
// transpose; these go through shared memory, a row of 33 words to each column, from where 8 threads write 128 bytes in a line.
template <class Kind> __device__ __forceinline__ void round_tile(
    const elem* x, const float* magnitude, i64 rows, i64 columns, unsigned char* straight, float* straight_unit, unsigned char* transposed, float* transposed_unit)
{
    __shared__ u32 words[128][33];
    float m = *magnitude;
    bool scaled = !(m < 1e-30f);
    float scale = scaled ? Kind::largest() / m : 1.f;
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
    {
        float unit = scaled ? m / Kind::largest() : 1.f;
        if (straight_unit) *straight_unit = unit;
        if (transposed_unit) *transposed_unit = unit;
    }
    i64 row0 = (i64)blockIdx.y * 128, column0 = (i64)blockIdx.x * 128;
    int pack = threadIdx.x & 15;
    i64 column = column0 + pack * 8;
    Pack p[2][4];
    for (int half = 0; half < 2; half++)
    {
        i64 row = row0 + 4 * ((threadIdx.x >> 4) + 16 * half);
        if (row < rows && column < columns)
            for (int r = 0; r < 4; r++) p[half][r] = load(x + (row + r) * columns + column);
    }
    for (int half = 0; half < 2; half++)
    {
        int group = (threadIdx.x >> 4) + 16 * half;
        i64 row = row0 + 4 * group;
        if (row >= rows || column >= columns) continue;
        u32 bytes[4][2];
        for (int r = 0; r < 4; r++)
            for (int w = 0; w < 2; w++)
            {
                const elem* v = p[half][r].v + 4 * w;
                bytes[r][w] = Kind::pair(up(v[0]) * scale, up(v[1]) * scale) | Kind::pair(up(v[2]) * scale, up(v[3]) * scale) << 16;
            }
        if (straight)
            for (int r = 0; r < 4; r++) *reinterpret_cast<uint2*>(straight + (row + r) * columns + column) = make_uint2(bytes[r][0], bytes[r][1]);
        if (transposed)
            for (int w = 0; w < 2; w++)
                for (int j = 0; j < 4; j++)
                {
                    u32 low = __byte_perm(bytes[0][w], bytes[1][w], 0x40 + 0x11 * j), high = __byte_perm(bytes[2][w], bytes[3][w], 0x40 + 0x11 * j);
                    words[8 * pack + 4 * w + j][group] = __byte_perm(low, high, 0x5410);
                }
    }
    if (!transposed) return;
    __syncthreads();
    for (int step = 0; step < 4; step++)
    {
        int c = (threadIdx.x >> 3) + 32 * step, word = 4 * (threadIdx.x & 7);
        if (column0 + c >= columns || row0 + 4 * word >= rows) continue;
        uint4 line = make_uint4(words[c][word], words[c][word + 1], words[c][word + 2], words[c][word + 3]);
        *reinterpret_cast<uint4*>(transposed + (column0 + c) * rows + row0 + 4 * word) = line;
    }
}

extern "C" __global__ void round_to_e4m3(
    const elem* x, const float* magnitude, i64 rows, i64 columns, unsigned char* straight, float* straight_unit, unsigned char* transposed, float* transposed_unit)
{
    round_tile<E4M3>(x, magnitude, rows, columns, straight, straight_unit, transposed, transposed_unit);
}

extern "C" __global__ void round_to_e5m2(
    const elem* x, const float* magnitude, i64 rows, i64 columns, unsigned char* straight, float* straight_unit, unsigned char* transposed, float* transposed_unit)
{
    round_tile<E5M2>(x, magnitude, rows, columns, straight, straight_unit, transposed, transposed_unit);
}
