// silu(gate) · up (arXiv 2002.05202); gate and up are the two halves of each row of 2F elements. One thread handles VEC columns.
__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + __expf(-x)); }

extern "C" __global__ void swiglu_forward(const elem* gate_up, elem* y, i64 rows, i64 width)
{
    i64 index = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    if (index >= rows * width) return;
    i64 row = index / width, column = index % width;
    Pack g = load(gate_up + row * 2 * width + column), u = load(gate_up + row * 2 * width + width + column);
    for (int j = 0; j < VEC; j++) { float x = up(g.v[j]); g.v[j] = down(x * sigmoid(x) * up(u.v[j])); }
    store(y + index, g);
}

// silu'(g) = s + silu(g) · (1 − s), s = sigmoid(g). `y` is the forward's output again, bit by bit, so that nobody has to keep it.
extern "C" __global__ void swiglu_backward(const elem* grad, const elem* gate_up, elem* grad_gate_up, elem* y, i64 rows, i64 width)
{
    i64 index = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    if (index >= rows * width) return;
    i64 row = index / width, column = index % width, at = row * 2 * width + column;
    Pack g = load(gate_up + at), u = load(gate_up + at + width), d = load(grad + index), a;
    for (int j = 0; j < VEC; j++)
    {
        float x = up(g.v[j]), s = sigmoid(x), silu = x * s, dj = up(d.v[j]), uj = up(u.v[j]);
        a.v[j] = down(silu * uj);
        u.v[j] = down(dj * silu);
        g.v[j] = down(dj * uj * (s + silu * (1.f - s)));
    }
    store(grad_gate_up + at, g);
    store(grad_gate_up + at + width, u);
    store(y + index, a);
}

// Row r times weights[r], an expert's share of its token, in fp32 and rounded once.
extern "C" __global__ void weighted_swiglu_forward(const elem* gate_up, const float* weights, elem* y, i64 rows, i64 width)
{
    i64 index = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    if (index >= rows * width) return;
    i64 row = index / width, column = index % width;
    float weight = weights[row];
    Pack g = load(gate_up + row * 2 * width + column), u = load(gate_up + row * 2 * width + width + column);
    for (int j = 0; j < VEC; j++) { float x = up(g.v[j]); g.v[j] = down(x * sigmoid(x) * up(u.v[j]) * weight); }
    store(y + index, g);
}

// Gradients of gate_up and of the weights; `y`, unless null, is the forward's output again. One warp per row, which sums the weight's gradient.
extern "C" __global__ void __launch_bounds__(256) weighted_swiglu_backward(
    const elem* grad, const elem* gate_up, const float* weights, elem* grad_gate_up, float* grad_weights, elem* y, i64 rows, i64 width)
{
    i64 row = (i64)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (row >= rows) return; // a whole warp
    int lane = threadIdx.x & 31;
    float weight = weights[row], sum = 0.f;
    const elem* in = gate_up + row * 2 * width;
    elem* out = grad_gate_up + row * 2 * width;
#pragma unroll 3
    for (int i = lane * VEC; i < width; i += 32 * VEC)
    {
        Pack g = load(in + i), u = load(in + width + i), d = load(grad + row * width + i), a;
        for (int j = 0; j < VEC; j++)
        {
            float x = up(g.v[j]), s = sigmoid(x), silu = x * s, dj = up(d.v[j]), uj = up(u.v[j]), activation = silu * uj;
            sum += dj * activation;
            a.v[j] = down(activation * weight);
            dj *= weight;
            u.v[j] = down(dj * silu);
            g.v[j] = down(dj * uj * (s + silu * (1.f - s)));
        }
        store(out + i, g);
        store(out + width + i, u);
        if (y) store(y + row * width + i, a);
    }
    sum = warp_sum(sum);
    if (lane == 0) grad_weights[row] = sum;
}
