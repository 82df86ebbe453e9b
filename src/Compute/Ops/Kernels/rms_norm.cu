// RMSNorm (arXiv 1910.07467, eq. 4) over rows of `width` elements. Row r lies at x + (r / heads) * stride + (r % heads) * width, so that the
// heads inside a fused projection are normalised where they stand; outputs are contiguous. The weight of head a is weight + a * weight_stride.

// One block of blockDim.x threads per row.
extern "C" __global__ void rms_norm_forward(
    const elem* x, const elem* weight, elem* y, float* inverse, i64 heads, i64 stride, i64 width, i64 weight_stride, double epsilon)
{
    __shared__ float shared[33];
    i64 row = blockIdx.x, head = row % heads;
    const elem* in = x + (row / heads) * stride + head * width;
    const elem* w = weight + head * weight_stride;
    elem* out = y + row * width;
    float sum = 0.f;
    for (int i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC)
    {
        Pack p = load(in + i);
        for (int j = 0; j < VEC; j++) { float v = up(p.v[j]); sum += v * v; }
    }
    float r = rsqrtf(block_sum(sum, shared) / (float)width + (float)epsilon);
    if (threadIdx.x == 0) inverse[row] = r;
    for (int i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC)
    {
        Pack p = load(in + i), q = load(w + i);
        for (int j = 0; j < VEC; j++) p.v[j] = down(up(down(up(p.v[j]) * r)) * up(q.v[j]));
        store(out + i, p);
    }
}

// One group of 16 lanes per row: rows of at most 16 * VEC elements (heads). Several rows per block.
extern "C" __global__ void rms_norm_forward_heads(
    const elem* x, const elem* weight, elem* y, float* inverse, i64 rows, i64 heads, i64 stride, i64 width, i64 weight_stride, double epsilon)
{
    i64 row = (i64)blockIdx.x * (blockDim.x / 16) + threadIdx.x / 16;
    int i = (threadIdx.x % 16) * VEC;
    bool on = row < rows && i < width;
    i64 head = row % heads;
    Pack p;
    float sum = 0.f;
    if (on)
    {
        p = load(x + (row / heads) * stride + head * width + i);
        for (int j = 0; j < VEC; j++) { float v = up(p.v[j]); sum += v * v; }
    }
    for (int o = 8; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o, 16);
    float r = rsqrtf(sum / (float)width + (float)epsilon);
    if (!on) return;
    if (i == 0) inverse[row] = r;
    Pack q = load(weight + head * weight_stride + i);
    for (int j = 0; j < VEC; j++) p.v[j] = down(up(down(up(p.v[j]) * r)) * up(q.v[j]));
    store(y + row * width + i, p);
}

// Gradients of rows of at most 4 * blockDim.x * VEC elements (heads == 1). Block b takes rows b, b + gridDim.x, … and leaves its share of the
// weight gradient in partial[b, width], summed afterwards in a fixed order: no atomics.
extern "C" __global__ void rms_norm_backward(
    const elem* grad, const elem* x, const elem* weight, const float* inverse, elem* grad_x, float* partial, i64 rows, i64 width)
{
    __shared__ float shared[33];
    float acc[4 * VEC];
    for (int k = 0; k < 4 * VEC; k++) acc[k] = 0.f;
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x)
    {
        const elem* g_row = grad + row * width;
        const elem* x_row = x + row * width;
        float r = inverse[row], dot = 0.f;
        for (int i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC)
        {
            Pack g = load(g_row + i), v = load(x_row + i), w = load(weight + i);
            for (int j = 0; j < VEC; j++) dot += up(g.v[j]) * up(w.v[j]) * up(v.v[j]) * r;
        }
        float mean = block_sum(dot, shared) / (float)width;
        #pragma unroll
        for (int k = 0; k < 4; k++) // a constant bound keeps acc in registers
        {
            int i = (threadIdx.x + k * blockDim.x) * VEC;
            if (i >= width) break;
            Pack g = load(g_row + i), v = load(x_row + i), w = load(weight + i);
            for (int j = 0; j < VEC; j++)
            {
                float n = up(v.v[j]) * r, gj = up(g.v[j]);
                acc[k * VEC + j] += gj * up(down(n));
                v.v[j] = down((gj * up(w.v[j]) - n * mean) * r);
            }
            store(grad_x + row * width + i, v);
        }
    }
    #pragma unroll
    for (int k = 0; k < 4; k++)
    {
        int i = (threadIdx.x + k * blockDim.x) * VEC;
        if (i >= width) break;
        for (int j = 0; j < VEC; j++) partial[(i64)blockIdx.x * width + i + j] = acc[k * VEC + j];
    }
}

// The same for heads: blockIdx.y is the head, 16 lanes per row; grad and x are strided like the forward's input, grad_x is contiguous
// [T, heads, width]. partial is [gridDim.x, heads, width].
extern "C" __global__ void rms_norm_backward_heads(
    const elem* grad, const elem* x, const elem* weight, const float* inverse, elem* grad_x, float* partial, i64 tokens, i64 heads,
    i64 grad_stride, i64 x_stride, i64 width, i64 weight_stride)
{
    extern __shared__ float sums[];
    int head = blockIdx.y, group = threadIdx.x / 16, groups = blockDim.x / 16, i = (threadIdx.x % 16) * VEC;
    float acc[VEC];
    Pack w;
    for (int j = 0; j < VEC; j++) acc[j] = 0.f;
    if (i < width) w = load(weight + head * weight_stride + i);
    i64 step = (i64)gridDim.x * groups;
    // All lanes of a warp make the same number of rounds, because they exchange sums.
    for (i64 base = (i64)blockIdx.x * groups; base < tokens; base += step)
    {
        i64 token = base + group;
        bool on = token < tokens && i < width;
        Pack g, v;
        float r = 0.f, dot = 0.f;
        if (on)
        {
            g = load(grad + token * grad_stride + head * width + i);
            v = load(x + token * x_stride + head * width + i);
            r = inverse[token * heads + head];
            for (int j = 0; j < VEC; j++) dot += up(g.v[j]) * up(w.v[j]) * up(v.v[j]) * r;
        }
        for (int o = 8; o; o >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, o, 16);
        float mean = dot / (float)width;
        if (!on) continue;
        for (int j = 0; j < VEC; j++)
        {
            float n = up(v.v[j]) * r, gj = up(g.v[j]);
            acc[j] += gj * up(down(n));
            v.v[j] = down((gj * up(w.v[j]) - n * mean) * r);
        }
        store(grad_x + (token * heads + head) * width + i, v);
    }
    for (int j = 0; j < VEC; j++) if (i < width) sums[group * width + i + j] = acc[j];
    __syncthreads();
    for (int c = threadIdx.x; c < width; c += blockDim.x)
    {
        float total = 0.f;
        for (int g = 0; g < groups; g++) total += sums[g * width + c];
        partial[((i64)blockIdx.x * heads + head) * width + c] = total;
    }
}
