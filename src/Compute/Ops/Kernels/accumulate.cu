// What reaches the fp32 main gradients from gradients in the model dtype (ELEMENT), in fp32.

// target = or += source.
extern "C" __global__ void accumulate(const elem* source, float* target, i64 count, i64 overwrite)
{
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    if (i >= count) return;
    if (count - i < VEC)
    {
        for (; i < count; i++) target[i] = up(source[i]) + (overwrite ? 0.f : target[i]);
        return;
    }
    Pack p = load(source + i);
#pragma unroll
    for (int part = 0; part < VEC; part += 4)
    {
        float4 sum = {0.f, 0.f, 0.f, 0.f};
        if (!overwrite) sum = *(const float4*)(target + i + part);
        sum.x += up(p.v[part]); sum.y += up(p.v[part + 1]); sum.z += up(p.v[part + 2]); sum.w += up(p.v[part + 3]);
        *(float4*)(target + i + part) = sum;
    }
}

// target[column] = or += the sum of a column of [rows, columns], always in the same order. A block takes 32 columns; its 32 warps share the rows.
extern "C" __global__ void __launch_bounds__(1024) add_sum_of_rows(const float* parts, float* target, i64 rows, i64 columns, i64 stride, i64 overwrite)
{
    __shared__ float shared[32][33];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    i64 column = (i64)blockIdx.x * 32 + lane;
    float sum = 0.f;
    if (column < columns)
    {
#pragma unroll 8
        for (i64 row = warp; row < rows; row += 32) sum += parts[row * stride + column];
    }
    shared[warp][lane] = sum;
    __syncthreads();
    if (warp > 0) return;
    float total = 0.f;
    for (int w = 0; w < 32; w++) total += shared[w][lane];
    if (column < columns) target[column] = total + (overwrite ? 0.f : target[column]);
}

// table[id] += the sum of the rows of `grad` whose token has that id, in token order. sorted_ids [tokens] ascending with the tokens of an id in
// order, token_of [tokens] where each came from. A block owns the run of equal ids that begins at its position, and a slice of the columns.
extern "C" __global__ void __launch_bounds__(128) add_embedding_rows(
    const elem* grad, const i64* sorted_ids, const i64* token_of, float* table, i64 tokens, i64 width)
{
    i64 first = blockIdx.x, id = sorted_ids[first];
    if (first > 0 && sorted_ids[first - 1] == id) return;
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * VEC;
    if (i >= width) return;
    float acc[VEC];
    for (int c = 0; c < VEC; c++) acc[c] = 0.f;
    i64 end = first + 1;
    while (end < tokens && sorted_ids[end] == id) end++;
    i64 position = first;
    for (; position + 4 <= end; position += 4)
    {
        Pack p[4];
#pragma unroll
        for (int n = 0; n < 4; n++) p[n] = load(grad + token_of[position + n] * width + i);
#pragma unroll
        for (int n = 0; n < 4; n++)
            for (int c = 0; c < VEC; c++) acc[c] += up(p[n].v[c]);
    }
    for (; position < end; position++)
    {
        Pack p = load(grad + token_of[position] * width + i);
        for (int c = 0; c < VEC; c++) acc[c] += up(p.v[c]);
    }
    float* row = table + id * width + i;
#pragma unroll
    for (int part = 0; part < VEC; part += 4)
    {
        float4 sum = *(const float4*)(row + part);
        sum.x += acc[part]; sum.y += acc[part + 1]; sum.z += acc[part + 2]; sum.w += acc[part + 3];
        *(float4*)(row + part) = sum;
    }
}
