// Adam with decoupled decay (arXiv 1711.05101, algorithm 2) over flat ranges: reads gradient, master and moments, writes master, moments and
// the model's weight. ELEMENT is the model dtype; with ELEMENT 2 the weight is the master and `model` is not used. A factor of NaN changes nothing.
extern "C" __global__ void adamw(
    float* master, const float* gradient, float* exp_avg, float* exp_avg_sq, elem* model, i64 count, const float* factor, double beta1, double beta2,
    double epsilon, double step_size, double inverse_root_correction2, double decay)
{
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    float f = *factor;
    if (i >= count || f != f) return;
    float b1 = (float)beta1, b2 = (float)beta2, c1 = (float)(1.0 - beta1), c2 = (float)(1.0 - beta2), root = (float)inverse_root_correction2;
    float eps = (float)epsilon, lr = (float)step_size, wd = (float)decay;
    int n = count - i < 4 ? (int)(count - i) : 4;
    alignas(16) float p[4], g[4], m[4], v[4];
    if (n == 4)
    {
        *(float4*)p = *(const float4*)(master + i); *(float4*)g = *(const float4*)(gradient + i);
        *(float4*)m = *(const float4*)(exp_avg + i); *(float4*)v = *(const float4*)(exp_avg_sq + i);
    }
    else for (int j = 0; j < n; j++) { p[j] = master[i + j]; g[j] = gradient[i + j]; m[j] = exp_avg[i + j]; v[j] = exp_avg_sq[i + j]; }
    for (int j = 0; j < n; j++)
    {
        float gj = g[j] * f;
        m[j] = b1 * m[j] + c1 * gj;
        v[j] = b2 * v[j] + c2 * gj * gj;
        p[j] = p[j] - wd * p[j] - lr * m[j] / (sqrtf(v[j]) * root + eps);
    }
    if (n == 4)
    {
        *(float4*)(master + i) = *(float4*)p; *(float4*)(exp_avg + i) = *(float4*)m; *(float4*)(exp_avg_sq + i) = *(float4*)v;
#if ELEMENT != 2
        for (int j = 0; j < 4; j++) model[i + j] = down(p[j]);
#endif
    }
    else for (int j = 0; j < n; j++)
    {
        master[i + j] = p[j]; exp_avg[i + j] = m[j]; exp_avg_sq[i + j] = v[j];
#if ELEMENT != 2
        model[i + j] = down(p[j]);
#endif
    }
}
