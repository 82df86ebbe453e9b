// Gradient descent with momentum and L2 decay over flat ranges: b = mu·b + (factor·g + decay·p); p −= rate·b. ELEMENT is the model dtype; with
// ELEMENT 2 the weight is the master and `model` is not used. A factor of NaN changes nothing.
extern "C" __global__ void sgd(
    float* master, const float* gradient, float* momentum, elem* model, i64 count, const float* factor, double mu, double rate, double decay)
{
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    float f = *factor;
    if (i >= count || f != f) return;
    float m = (float)mu, lr = (float)rate, wd = (float)decay;
    int n = count - i < 4 ? (int)(count - i) : 4;
    alignas(16) float p[4], g[4], b[4];
    if (n == 4)
    {
        *(float4*)p = *(const float4*)(master + i); *(float4*)g = *(const float4*)(gradient + i); *(float4*)b = *(const float4*)(momentum + i);
    }
    else for (int j = 0; j < n; j++) { p[j] = master[i + j]; g[j] = gradient[i + j]; b[j] = momentum[i + j]; }
    for (int j = 0; j < n; j++)
    {
        b[j] = m * b[j] + f * g[j] + wd * p[j];
        p[j] -= lr * b[j];
    }
    if (n == 4) { *(float4*)(master + i) = *(float4*)p; *(float4*)(momentum + i) = *(float4*)b; }
    else for (int j = 0; j < n; j++) { master[i + j] = p[j]; momentum[i + j] = b[j]; }
#if ELEMENT != 2
    for (int j = 0; j < n; j++) model[i + j] = down(p[j]);
#endif
}
