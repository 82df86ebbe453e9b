// Half rotation in place (arXiv 2104.09864): channel i is paired with i + D/2. x is [T, heads, D] with `stride` elements between tokens; the
// tables are [positions, D] and [positions, D/2] in the activation dtype. One thread rotates VEC pairs. sign −1 is the backward.
extern "C" __global__ void rotary_in_place(
    elem* x, const elem* cos_table, const elem* sin_table, const i64* positions, i64 tokens, i64 heads, i64 stride, i64 half, double sign)
{
    i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x, per_head = half / VEC;
    if (index >= tokens * heads * per_head) return;
    int i = (int)(index % per_head) * VEC;
    i64 head = index / per_head % heads, token = index / (per_head * heads), position = positions[token];
    elem* row = x + token * stride + head * 2 * half;
    Pack a = load(row + i), b = load(row + half + i), c = load(cos_table + position * 2 * half + i), s = load(sin_table + position * half + i);
    for (int j = 0; j < VEC; j++)
    {
        float aj = up(a.v[j]), bj = up(b.v[j]), cj = up(c.v[j]), sj = up(s.v[j]) * (float)sign;
        a.v[j] = down(aj * cj - bj * sj);
        b.v[j] = down(bj * cj + aj * sj);
    }
    store(row + i, a);
    store(row + half + i, b);
}
