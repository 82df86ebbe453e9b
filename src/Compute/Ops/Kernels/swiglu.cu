// silu(gate) · up (arXiv 2002.05202); gate and up are the two halves of each row of 2F elements. One thread handles VEC columns.
extern "C" __global__ void swiglu_forward(const elem* gate_up, elem* y, i64 rows, i64 width)
{
    i64 index = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    if (index >= rows * width) return;
    i64 row = index / width, column = index % width;
    Pack g = load(gate_up + row * 2 * width + column), u = load(gate_up + row * 2 * width + width + column);
    for (int j = 0; j < VEC; j++) { float x = up(g.v[j]); g.v[j] = down(x / (1.f + __expf(-x)) * up(u.v[j])); }
    store(y + index, g);
}

// silu'(g) = s + silu(g) · (1 − s), s = sigmoid(g).
extern "C" __global__ void swiglu_backward(const elem* grad, const elem* gate_up, elem* grad_gate_up, i64 rows, i64 width)
{
    i64 index = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    if (index >= rows * width) return;
    i64 row = index / width, column = index % width, at = row * 2 * width + column;
    Pack g = load(gate_up + at), u = load(gate_up + at + width), d = load(grad + index);
    for (int j = 0; j < VEC; j++)
    {
        float x = up(g.v[j]), s = 1.f / (1.f + __expf(-x)), silu = x * s, dj = up(d.v[j]), uj = up(u.v[j]);
        u.v[j] = down(dj * silu);
        g.v[j] = down(dj * uj * (s + silu * (1.f - s)));
    }
    store(grad_gate_up + at, g);
    store(grad_gate_up + at + width, u);
}
