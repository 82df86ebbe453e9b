// RMSNorm (arXiv 1910.07467, eq. 4) over rows of `width` elements, at most blockDim.x * VEC: each thread holds one pack of a row.

// Sum over the block in one barrier: every thread adds the warps' sums. Calls that follow each other need different halves of `shared`.
__device__ __forceinline__ float block_total(float x, float* shared)
{
    x = warp_sum(x);
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
    __syncthreads();
    float total = 0.f;
    for (int warp = 0; warp < (blockDim.x + 31) >> 5; warp++) total += shared[warp];
    return total;
}

// One block per row. With a residual the row is x + residual, rounded and stored in `sum` first.
extern "C" __global__ void rms_norm_forward(
    const elem* x, const elem* residual, const elem* weight, elem* sum, elem* y, float* inverse, i64 width, double epsilon)
{
    __shared__ float shared[32];
    int i = threadIdx.x * VEC;
    bool on = i < width;
    i64 at = (i64)blockIdx.x * width + i;
    Pack p;
    float squares = 0.f;
    if (on)
    {
        p = load(x + at);
        if (residual)
        {
            Pack a = load(residual + at);
            for (int j = 0; j < VEC; j++) p.v[j] = down(up(p.v[j]) + up(a.v[j]));
            store(sum + at, p);
        }
        for (int j = 0; j < VEC; j++) { float v = up(p.v[j]); squares += v * v; }
    }
    float r = rsqrtf(block_total(squares, shared) / (float)width + (float)epsilon);
    if (threadIdx.x == 0) inverse[blockIdx.x] = r;
    if (!on) return;
    Pack q = load(weight + i);
    for (int j = 0; j < VEC; j++) p.v[j] = down(up(down(up(p.v[j]) * r)) * up(q.v[j]));
    store(y + at, p);
}

// Block b takes rows b, b + gridDim.x, … and leaves its share of the weight gradient in partial[b, width], summed afterwards in a fixed
// order: no atomics. `residual_grad`, when there is one, is added to the gradient of x after that was rounded. `y`, unless null, is the forward's
// output again, bit by bit.
extern "C" __global__ void rms_norm_backward(
    const elem* grad, const elem* residual_grad, const elem* x, const elem* weight, const float* inverse, elem* grad_x, elem* y, float* partial, i64 rows,
    i64 width)
{
    __shared__ float shared[2][32];
    int i = threadIdx.x * VEC;
    bool on = i < width;
    float acc[VEC];
    for (int j = 0; j < VEC; j++) acc[j] = 0.f;
    Pack w, g, v;
    i64 row = blockIdx.x;
    if (on)
    {
        w = load(weight + i);
        if (row < rows) { g = load(grad + row * width + i); v = load(x + row * width + i); }
    }
    for (int parity = 0; row < rows; row += gridDim.x, parity ^= 1)
    {
        i64 at = row * width + i, next = row + gridDim.x;
        Pack next_g, next_v, extra;
        if (on && next < rows) { next_g = load(grad + next * width + i); next_v = load(x + next * width + i); } // under way during the barrier
        if (on && residual_grad) extra = load(residual_grad + at);
        float r = inverse[row], dot = 0.f;
        if (on) for (int j = 0; j < VEC; j++) dot += up(g.v[j]) * up(w.v[j]) * up(v.v[j]) * r;
        float mean = block_total(dot, shared[parity]) / (float)width;
        if (on)
        {
            Pack again;
            for (int j = 0; j < VEC; j++)
            {
                float n = up(v.v[j]) * r, gj = up(g.v[j]), rounded = up(down(n));
                acc[j] += gj * rounded;
                again.v[j] = down(rounded * up(w.v[j]));
                v.v[j] = down((gj * up(w.v[j]) - n * mean) * r);
                if (residual_grad) v.v[j] = down(up(v.v[j]) + up(extra.v[j]));
            }
            store(grad_x + at, v);
            if (y) store(y + at, again);
        }
        g = next_g;
        v = next_v;
    }
    if (on) for (int j = 0; j < VEC; j++) partial[(i64)blockIdx.x * width + i + j] = acc[j];
}
