// Cross-entropy of each row of logits [rows, vocabulary], whole on this rank. The weighted loss of a row goes to losses[row]; with
// a factor the logits become the gradient of factor · weight · loss, in place: no second [T, V] tensor. One block per row. The row is read once:
// between the two passes a thread keeps HELD packs in registers and `stored` in shared memory; what is beyond that is read again.
#define THREADS 512
#define HELD 16
#define LOG2E 1.4426950408889634f // exponentials are powers of two on this hardware

__device__ __forceinline__ float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

__device__ __forceinline__ void load_async(Pack* shared, const elem* p)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"((u32)__cvta_generic_to_shared(shared)), "l"(p) : "memory");
}

// A thread keeps a running maximum and rescales its sum when it grows.
__device__ __forceinline__ void absorb(const Pack& p, float& max, float& sum)
{
    float x[VEC];
    unpack(p, x);
    float local = x[0];
    for (int j = 1; j < VEC; j++) local = fmaxf(local, x[j]);
    if (local > max) { sum *= exp2_fast((max - local) * LOG2E); max = local; }
    float shift = max * LOG2E;
    for (int j = 0; j < VEC; j++) sum += exp2_fast(x[j] * LOG2E - shift);
}

// softmax(logits) · scale, `inverse` being the scale over the sum. The label's element is mended afterwards by one thread.
__device__ __forceinline__ Pack gradient(const Pack& p, float shift, float inverse)
{
    float x[VEC];
    unpack(p, x);
    for (int j = 0; j < VEC; j++) x[j] = exp2_fast(x[j] * LOG2E - shift) * inverse;
    return pack(x);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) cross_entropy(
    elem* logits, const i64* labels, const float* weights, float* losses, i64 vocabulary, const double* factor, i64 stored)
{
    extern __shared__ Pack rest[];
    __shared__ float shared[33];
    i64 row = blockIdx.x, label = labels[row];
    elem* z = logits + row * vocabulary;
    float weight = label < 0 ? 0.f : weights[row];
    int packs = (int)(vocabulary / VEC), first = HELD * THREADS + threadIdx.x, end = first + (int)stored * THREADS;
    if (end > packs) end = packs;
    Pack held[HELD];
#pragma unroll
    for (int n = 0; n < HELD; n++)
        if (n * THREADS + threadIdx.x < packs) held[n] = load(z + (n * THREADS + threadIdx.x) * VEC);
    for (int i = first; i < end; i += THREADS) load_async(rest + i - HELD * THREADS, z + i * VEC);
    float max = -3.4e38f, sum = 0.f;
#pragma unroll
    for (int n = 0; n < HELD; n++)
        if (n * THREADS + threadIdx.x < packs) absorb(held[n], max, sum);
    asm volatile("cp.async.wait_all;" ::: "memory"); // a thread reads what it brought itself
    for (int i = first; i < end; i += THREADS) absorb(rest[i - HELD * THREADS], max, sum);
    int again = first + (int)stored * THREADS;
    for (int i = again; i < packs; i += THREADS) absorb(load(z + i * VEC), max, sum);
    float top = block_max(max, shared);
    float total = block_sum(sum * exp2_fast((max - top) * LOG2E), shared);
    float own = threadIdx.x == 0 && label >= 0 ? up(z[label]) : 0.f;
    if (threadIdx.x == 0) losses[row] = weight == 0.f ? 0.f : weight * (logf(total) + top - own);
    if (!factor) return;
    __syncthreads(); // the label's logit has been read
    float scale = weight * (float)*factor, inverse = scale / total, shift = top * LOG2E;
#pragma unroll
    for (int n = 0; n < HELD; n++)
    {
        int i = n * THREADS + threadIdx.x;
        if (i < packs) store(z + i * VEC, gradient(held[n], shift, inverse));
    }
    for (int i = first; i < end; i += THREADS) store(z + i * VEC, gradient(rest[i - HELD * THREADS], shift, inverse));
    for (int i = again; i < packs; i += THREADS) store(z + i * VEC, gradient(load(z + i * VEC), shift, inverse));
    __syncthreads();
    if (threadIdx.x == 0 && label >= 0) z[label] = down(exp2_fast(own * LOG2E - shift) * inverse - scale);
}
