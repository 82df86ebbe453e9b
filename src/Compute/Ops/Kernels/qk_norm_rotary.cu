// RMSNorm of every query and key head (arXiv 1910.07467) and then the half rotation (arXiv 2104.09864), and both backwards, in one pass.
// A head of at most 128 channels lies in LANES neighbouring lanes; lane l holds channels l * VEC… of both halves, which the rotation pairs, so
// nothing is exchanged for it. The width is a multiple of 2 * VEC.
#define LANES (64 / VEC)

// First half a·cos − b·sin, second half b·cos + a·sin. sign −1 turns back.
__device__ __forceinline__ void rotate(float* a, float* b, const Pack& cosines, const Pack& sines, float sign)
{
    float c[VEC], s[VEC];
    unpack(cosines, c);
    unpack(sines, s);
    for (int j = 0; j < VEC; j++)
    {
        float aj = a[j], bj = b[j], sj = sign * s[j];
        a[j] = aj * c[j] - bj * sj;
        b[j] = bj * c[j] + aj * sj;
    }
}

__device__ __forceinline__ float head_sum(float x)
{
    for (int o = LANES / 2; o; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o, LANES);
    return x;
}

// x: heads inside the fused projection, `stride` elements from token to token. y [tokens, query_heads + key_heads, width], inverse likewise
// without the width. The tables are [positions, width] and [positions, width / 2]. LANES threads per head, and no loop: all loads are under way at once.
extern "C" __global__ void qk_norm_rotary_forward(
    const elem* x, const elem* query_weight, const elem* key_weight, const elem* cos_table, const elem* sin_table, const i64* positions, elem* y, float* inverse,
    i64 tokens, i64 query_heads, i64 key_heads, i64 stride, i64 width, double epsilon)
{
    u32 heads = (u32)(query_heads + key_heads), half = (u32)width / 2, i = threadIdx.x % LANES * VEC;
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) / LANES; // token and head
    bool on = i < half && at < tokens * heads;
    i64 token = at / heads;
    u32 head = (u32)(at - token * heads);
    Pack cosines, sines, weight_a, weight_b;
    float a[VEC], b[VEC], sum = 0.f;
    if (on)
    {
        const elem* in = x + token * stride + head * (u32)width + i;
        Pack p = load(in), q = load(in + half);
        i64 position = positions[token];
        const elem* weight = (head < query_heads ? query_weight : key_weight) + i;
        weight_a = load(weight);
        weight_b = load(weight + half);
        cosines = load(cos_table + position * width + i);
        sines = load(sin_table + position * half + i);
        unpack(p, a);
        unpack(q, b);
        for (int j = 0; j < VEC; j++) sum += a[j] * a[j] + b[j] * b[j];
    }
    float r = rsqrtf(head_sum(sum) / (float)width + (float)epsilon); // all lanes of a warp take part
    if (!on) return;
    float wa[VEC], wb[VEC];
    unpack(weight_a, wa);
    unpack(weight_b, wb);
    for (int j = 0; j < VEC; j++) { a[j] *= r; b[j] *= r; }
    round_all(a);
    round_all(b);
    for (int j = 0; j < VEC; j++) { a[j] *= wa[j]; b[j] *= wb[j]; }
    round_all(a);
    round_all(b);
    rotate(a, b, cosines, sines, 1.f);
    elem* out = y + at * width + i;
    store(out, pack(a));
    store(out + half, pack(b));
    if (i == 0) inverse[at] = r;
}

// grad_x [tokens, query_heads + 2 key_heads, width] from the three gradients of attention, each with its own strides from token to token and
// head to head. x, inverse as in the forward; x is null when there is no norm. A thread stays with one head: blockIdx.y chooses which part of
// the heads, blockIdx.x takes tokens b, b + gridDim.x, … partial [gridDim.y * gridDim.x, 2, width] is a block's share of both weights' gradients.
extern "C" __global__ void __launch_bounds__(256) qk_norm_rotary_backward(
    const elem* grad_query, const elem* grad_key, const elem* grad_value, const elem* x, const float* inverse, const elem* query_weight, const elem* key_weight,
    const elem* cos_table, const elem* sin_table, const i64* positions, elem* grad_x, float* partial, i64 tokens, i64 query_heads, i64 key_heads,
    i64 query_stride, i64 query_head_stride, i64 key_stride, i64 key_head_stride, i64 value_stride, i64 value_head_stride, i64 x_stride, i64 width)
{
    extern __shared__ float sums[]; // [groups, 2, width]
    int rotated = (int)(query_heads + key_heads), heads = rotated + (int)key_heads, group = threadIdx.x / LANES, groups = blockDim.x / LANES;
    int i = (threadIdx.x % LANES) * VEC, half = (int)width / 2, head = blockIdx.y * groups + group;
    bool on = i < half && head < heads, is_key = head >= query_heads, turns = on && head < rotated;
    const elem* in = (!is_key ? grad_query + head * query_head_stride
        : turns ? grad_key + (head - query_heads) * key_head_stride : grad_value + (head - rotated) * value_head_stride) + i;
    i64 in_stride = !is_key ? query_stride : turns ? key_stride : value_stride;
    Pack wa, wb;
    if (turns && x)
    {
        const elem* weight = (is_key ? key_weight : query_weight) + i;
        wa = load(weight);
        wb = load(weight + half);
    }
    float acc[2 * VEC];
    for (int j = 0; j < 2 * VEC; j++) acc[j] = 0.f;
    i64 next_position = blockIdx.x < tokens ? positions[blockIdx.x] : 0;
    for (i64 token = blockIdx.x; token < tokens; token += gridDim.x)
    {
        i64 position = next_position;
        if (token + gridDim.x < tokens) next_position = positions[token + gridDim.x];
        Pack p, q, na, nb, cosines, sines;
        float r = 0.f;
        if (on) { p = load(in + token * in_stride); q = load(in + token * in_stride + half); }
        if (turns)
        {
            cosines = load(cos_table + position * width + i);
            sines = load(sin_table + position * half + i);
            if (x)
            {
                const elem* raw = x + token * x_stride + head * width + i;
                na = load(raw);
                nb = load(raw + half);
                r = inverse[token * rotated + head];
            }
        }
        float a[VEC], b[VEC];
        if (turns)
        {
            unpack(p, a);
            unpack(q, b);
            rotate(a, b, cosines, sines, -1.f);
        }
        if (x)
        {
            float xa[VEC], xb[VEC], dot = 0.f;
            if (turns)
            {
                unpack(na, xa);
                unpack(nb, xb);
                float weight_a[VEC], weight_b[VEC];
                unpack(wa, weight_a);
                unpack(wb, weight_b);
                for (int j = 0; j < VEC; j++)
                {
                    xa[j] *= r;
                    xb[j] *= r;
                    acc[j] += a[j] * xa[j];
                    acc[VEC + j] += b[j] * xb[j];
                    a[j] *= weight_a[j];
                    b[j] *= weight_b[j];
                    dot += a[j] * xa[j] + b[j] * xb[j];
                }
            }
            float mean = head_sum(dot) / (float)width; // all lanes of a warp take part
            if (turns)
                for (int j = 0; j < VEC; j++)
                {
                    a[j] = (a[j] - xa[j] * mean) * r;
                    b[j] = (b[j] - xb[j] * mean) * r;
                }
        }
        if (turns) { p = pack(a); q = pack(b); }
        if (!on) continue;
        elem* out = grad_x + (token * heads + head) * width + i;
        store(out, p);
        store(out + half, q);
    }
    if (!x) return;
    if (i < half)
        for (int j = 0; j < VEC; j++)
        {
            float* mine = sums + group * 2 * width + i + j;
            bool of_query = turns && !is_key, of_key = turns && is_key;
            mine[0] = of_query ? acc[j] : 0.f;
            mine[half] = of_query ? acc[VEC + j] : 0.f;
            mine[width] = of_key ? acc[j] : 0.f;
            mine[width + half] = of_key ? acc[VEC + j] : 0.f;
        }
    __syncthreads();
    for (int c = threadIdx.x; c < 2 * width; c += blockDim.x)
    {
        float total = 0.f;
        for (int g = 0; g < groups; g++) total += sums[g * 2 * width + c];
        partial[((i64)blockIdx.y * gridDim.x + blockIdx.x) * 2 * width + c] = total;
    }
}
