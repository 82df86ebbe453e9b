// Cross-entropy of each row of logits [rows, vocabulary], whole on this rank. The weighted loss of a row goes to losses[row]; with
// factor != 0 the logits become the gradient of factor · weight · loss, in place: no second [T, V] tensor. One block per row.
extern "C" __global__ void cross_entropy(
    elem* logits, const i64* labels, const float* weights, float* losses, i64 vocabulary, double factor)
{
    __shared__ float shared[33];
    i64 row = blockIdx.x, label = labels[row];
    elem* z = logits + row * vocabulary;
    float weight = label < 0 ? 0.f : weights[row];
    // One pass for maximum and sum: each thread keeps a running maximum and rescales its sum when it grows.
    float max = -3.4e38f, sum = 0.f;
    for (i64 i = threadIdx.x * VEC; i < vocabulary; i += blockDim.x * VEC)
    {
        Pack p = load(z + i);
        float local = up(p.v[0]);
        for (int j = 1; j < VEC; j++) local = fmaxf(local, up(p.v[j]));
        if (local > max) { sum *= __expf(max - local); max = local; }
        for (int j = 0; j < VEC; j++) sum += __expf(up(p.v[j]) - max);
    }
    float top = block_max(max, shared);
    float total = block_sum(sum * __expf(max - top), shared);
    if (threadIdx.x == 0) losses[row] = weight == 0.f ? 0.f : weight * (logf(total) + top - up(z[label]));
    if (factor == 0.0) return;
    __syncthreads(); // the label's logit has been read
    float scale = weight * (float)factor, inverse = scale / total;
    for (i64 i = threadIdx.x * VEC; i < vocabulary; i += blockDim.x * VEC)
    {
        Pack p = load(z + i);
        for (int j = 0; j < VEC; j++)
        {
            float g = __expf(up(p.v[j]) - top) * inverse;
            if (i + j == label) g -= scale;
            p.v[j] = down(g);
        }
        store(z + i, p);
    }
}
