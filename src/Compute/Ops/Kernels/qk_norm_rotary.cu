// RMSNorm of every query and key head (arXiv 1910.07467) and then the half rotation (arXiv 2104.09864), and both backwards, in one pass.
// A head of at most 128 channels lies in LANES neighbouring lanes, VEC channels each; its width is a multiple of 2 * VEC.
#define LANES (128 / VEC)

// v[lane] of the head's channel i meets channel i ± width/2: first half a·cos − b·sin, second half b·cos + a·sin. sign −1 turns back.
__device__ __forceinline__ void rotate(float* v, int lane, int half_lanes, bool on, const elem* cos_row, const elem* sin_row, float sign)
{
    int partner = lane < half_lanes ? lane + half_lanes : lane - half_lanes;
    float other[VEC];
    for (int j = 0; j < VEC; j++) other[j] = __shfl_sync(0xffffffffu, v[j], partner & (LANES - 1), LANES);
    if (!on) return;
    int i = (lane < half_lanes ? lane : lane - half_lanes) * VEC;
    Pack c = load(cos_row + i), s = load(sin_row + i);
    if (lane < half_lanes) sign = -sign;
    for (int j = 0; j < VEC; j++) v[j] = v[j] * up(c.v[j]) + sign * up(s.v[j]) * other[j];
}

__device__ __forceinline__ float head_sum(float x)
{
    for (int o = LANES / 2; o; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o, LANES);
    return x;
}

// x: heads inside the fused projection, `stride` elements from token to token. y [tokens, query_heads + key_heads, width], inverse likewise
// without the width. The tables are [positions, width] and [positions, width / 2].
extern "C" __global__ void qk_norm_rotary_forward(
    const elem* x, const elem* query_weight, const elem* key_weight, const elem* cos_table, const elem* sin_table, const i64* positions, elem* y, float* inverse,
    i64 tokens, i64 query_heads, i64 key_heads, i64 stride, i64 width, double epsilon)
{
    u32 heads = (u32)(query_heads + key_heads), row = blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES, token = row / heads, head = row - token * heads;
    int lane = threadIdx.x % LANES, i = lane * VEC;
    bool on = token < tokens && i < width;
    Pack p;
    float v[VEC], sum = 0.f;
    for (int j = 0; j < VEC; j++) v[j] = 0.f;
    if (on)
    {
        p = load(x + token * stride + head * width + i);
        for (int j = 0; j < VEC; j++) { v[j] = up(p.v[j]); sum += v[j] * v[j]; }
    }
    float r = rsqrtf(head_sum(sum) / (float)width + (float)epsilon);
    i64 position = on ? positions[token] : 0;
    if (on)
    {
        Pack w = load((head < query_heads ? query_weight : key_weight) + i);
        for (int j = 0; j < VEC; j++) v[j] = up(down(up(down(v[j] * r)) * up(w.v[j])));
        if (lane == 0) inverse[row] = r;
    }
    rotate(v, lane, (int)(width / (2 * VEC)), on, cos_table + position * width, sin_table + position * (width / 2), 1.f);
    if (!on) return;
    for (int j = 0; j < VEC; j++) p.v[j] = down(v[j]);
    store(y + (i64)row * width + i, p);
}

// grad_x [tokens, query_heads + 2 key_heads, width] from the three gradients of attention, each with its own strides from token to token and
// head to head. x, inverse as in the forward; x is null when there is no norm. partial [gridDim.x, 2, width]: this block's share of the
// gradients of both weights.
extern "C" __global__ void qk_norm_rotary_backward(
    const elem* grad_query, const elem* grad_key, const elem* grad_value, const elem* x, const float* inverse, const elem* query_weight, const elem* key_weight,
    const elem* cos_table, const elem* sin_table, const i64* positions, elem* grad_x, float* partial, i64 tokens, i64 query_heads, i64 key_heads,
    i64 query_stride, i64 query_head_stride, i64 key_stride, i64 key_head_stride, i64 value_stride, i64 value_head_stride, i64 x_stride, i64 width)
{
    extern __shared__ float sums[]; // [groups, 2, width]
    u32 rotated = (u32)(query_heads + key_heads), heads = rotated + (u32)key_heads, rows = (u32)tokens * heads;
    int lane = threadIdx.x % LANES, group = threadIdx.x / LANES, groups = blockDim.x / LANES, i = lane * VEC, half_lanes = (int)(width / (2 * VEC));
    float acc[2][VEC];
    for (int j = 0; j < VEC; j++) acc[0][j] = acc[1][j] = 0.f;
    // All lanes of a warp make the same number of rounds, because they exchange channels and sums.
    for (u32 base = blockIdx.x * groups; base < rows; base += gridDim.x * groups)
    {
        u32 row = base + group, token = row / heads, head = row - token * heads;
        bool on = row < rows && i < width, is_key = head >= query_heads, turns = on && head < rotated;
        Pack g, n, w;
        float v[VEC], r = 0.f, dot = 0.f;
        if (on)
            g = load(!is_key ? grad_query + token * query_stride + head * query_head_stride + i
                : turns ? grad_key + token * key_stride + (head - query_heads) * key_head_stride + i
                        : grad_value + token * value_stride + (head - rotated) * value_head_stride + i);
        if (turns && x)
        {
            n = load(x + token * x_stride + head * width + i);
            w = load((is_key ? key_weight : query_weight) + i);
            r = inverse[token * rotated + head];
        }
        for (int j = 0; j < VEC; j++) v[j] = on ? up(g.v[j]) : 0.f;
        i64 position = turns ? positions[token] : 0;
        rotate(v, lane, half_lanes, turns, cos_table + position * width, sin_table + position * (width / 2), -1.f);
        if (x)
        {
            if (turns) for (int j = 0; j < VEC; j++) { v[j] = up(down(v[j])); dot += v[j] * up(w.v[j]) * up(n.v[j]) * r; }
            float mean = head_sum(dot) / (float)width;
            if (turns)
                for (int j = 0; j < VEC; j++)
                {
                    float normalized = up(n.v[j]) * r, share = v[j] * up(down(normalized));
                    if (is_key) acc[1][j] += share;
                    else acc[0][j] += share;
                    v[j] = (v[j] * up(w.v[j]) - normalized * mean) * r;
                }
        }
        if (!on) continue;
        for (int j = 0; j < VEC; j++) g.v[j] = down(v[j]);
        store(grad_x + (i64)row * width + i, g);
    }
    if (!x) return;
    if (i < width)
        for (int k = 0; k < 2; k++)
            for (int j = 0; j < VEC; j++) sums[(group * 2 + k) * width + i + j] = acc[k][j];
    __syncthreads();
    for (int c = threadIdx.x; c < 2 * width; c += blockDim.x)
    {
        float total = 0.f;
        for (int g = 0; g < groups; g++) total += sums[g * 2 * width + c];
        partial[(i64)blockIdx.x * 2 * width + c] = total;
    }
}
