// Norm of the gradients and the factor that clips them (numerics 3.7), without the host. ELEMENT is the dtype of what is summed.

// Sum over the block in fp64, in a fixed order; the first thread gets it. Needs 32 doubles of shared memory.
__device__ __forceinline__ double block_total(double x, double* shared)
{
    for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
    __syncthreads();
    double total = 0.0;
    if (threadIdx.x == 0)
        for (int warp = 0; warp < blockDim.x >> 5; warp++) total += shared[warp];
    return total;
}

// partial[block] = sum of the squares of the block's packs: fp32 inside four packs, fp64 across them, so that no length loses digits.
extern "C" __global__ void __launch_bounds__(512) sum_of_squares(const elem* x, double* partial, i64 count)
{
    __shared__ double shared[32];
    double total = 0.0;
    i64 step = (i64)gridDim.x * blockDim.x * VEC;
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    for (; i + 3 * step + VEC <= count; i += 4 * step)
    {
        Pack p[4];
#pragma unroll
        for (int n = 0; n < 4; n++) p[n] = load(x + i + n * step);
        float sum = 0.f;
#pragma unroll
        for (int n = 0; n < 4; n++)
            for (int j = 0; j < VEC; j++) { float v = up(p[n].v[j]); sum += v * v; }
        total += (double)sum;
    }
    for (; i < count; i += step)
    {
        float sum = 0.f;
        for (int j = 0; j < VEC && i + j < count; j++) { float v = up(x[i + j]); sum += v * v; }
        total += (double)sum;
    }
    total = block_total(total, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// total[0] += the sum of the partials. One block.
extern "C" __global__ void add_partials(const double* partial, double* total, i64 count)
{
    __shared__ double shared[32];
    double sum = 0.0;
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_total(sum, shared);
    if (threadIdx.x == 0) total[0] += sum;
}

// factor[0] = clip factor / scale, where the norm is sqrt(squares) / scale; NaN when that is not finite, which tells the optimizer to leave all as it is.
extern "C" __global__ void clip_factor(const double* squares, float* factor, double scale, double max_norm)
{
    double norm = sqrt(squares[0]) / scale, clip = max_norm > 0.0 ? fmin(1.0, max_norm / (norm + 1e-6)) : 1.0;
    factor[0] = norm - norm == 0.0 ? (float)(clip / scale) : __int_as_float(0x7fc00000);
}
