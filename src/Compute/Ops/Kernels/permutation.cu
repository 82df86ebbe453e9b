// Rows of tokens sorted by expert, and back (arXiv 1701.06538, section 3.1, as gathers). A counting sort makes the order: integers only, and
// rows of one expert stay in the order of their places, so nothing depends on when a block runs. Places are [T, k] read row by row.
#define CHUNK 1024 // places of a block of the sort: one a thread

// counts[b, e]: places of block b that name expert e.
extern "C" __global__ void count_experts(const i64* expert_of_place, int* counts, i64 places, i64 experts)
{
    extern __shared__ int histogram[];
    for (int e = threadIdx.x; e < experts; e += blockDim.x) histogram[e] = 0;
    __syncthreads();
    i64 place = (i64)blockIdx.x * CHUNK + threadIdx.x;
    if (place < places) atomicAdd(histogram + (int)expert_of_place[place], 1);
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += blockDim.x) counts[(i64)blockIdx.x * experts + e] = histogram[e];
}

// One block. counts[b, e] becomes the first row of expert e that block b fills.
extern "C" __global__ void first_rows(int* counts, i64* rows_per_expert, i64 blocks, i64 experts)
{
    extern __shared__ int total[];
    for (int e = threadIdx.x; e < experts; e += blockDim.x)
    {
        int sum = 0;
#pragma unroll 8
        for (int b = 0; b < blocks; b++) sum += counts[(i64)b * experts + e];
        total[e] = sum;
        rows_per_expert[e] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0)
    {
        int end = 0;
        for (int e = 0; e < experts; e++) { int rows = total[e]; total[e] = end; end += rows; }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += blockDim.x)
    {
        int row = total[e];
#pragma unroll 8
        for (int b = 0; b < blocks; b++) { i64 at = (i64)b * experts + e; int mine = counts[at]; counts[at] = row; row += mine; }
    }
}

// first[b, e] of first_rows. A thread's row is the first of its block and expert, plus the places of that expert before its own in the block.
extern "C" __global__ void place_rows(
    const i64* expert_of_place, const int* first, i64* place_of_row, i64* row_of_place, i64 places, i64 experts)
{
    extern __shared__ u16 in_warp[]; // [warps, experts]
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = CHUNK / 32;
    for (int i = threadIdx.x; i < warps * experts; i += blockDim.x) in_warp[i] = 0;
    __syncthreads();
    i64 place = (i64)blockIdx.x * CHUNK + threadIdx.x;
    int expert = place < places ? (int)expert_of_place[place] : -1;
    u32 same = __match_any_sync(0xffffffffu, expert);
    int before = __popc(same & ((1u << lane) - 1));
    if (expert >= 0 && before == 0) in_warp[warp * experts + expert] = (u16)__popc(same);
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += blockDim.x)
    {
        int running = 0;
        for (int w = 0; w < warps; w++) { int mine = in_warp[w * experts + e]; in_warp[w * experts + e] = (u16)running; running += mine; }
    }
    __syncthreads();
    if (expert < 0) return;
    i64 row = first[(i64)blockIdx.x * experts + expert] + in_warp[warp * experts + expert] + before;
    place_of_row[row] = place;
    row_of_place[place] = row;
}

// Token t to its k rows: read once, written k times. One block per token.
extern "C" __global__ void copy_rows(const elem* x, const i64* row_of_place, elem* rows, i64 k, i64 width)
{
    const i64* mine = row_of_place + (i64)blockIdx.x * k;
    for (int i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC)
    {
        Pack p = load(x + (i64)blockIdx.x * width + i);
        for (int j = 0; j < k; j++) store(rows + mine[j] * width + i, p);
    }
}

// The sum of token t's k rows in fp32, in the order of its places, rounded once. One block per token; four rows are under way at a time.
extern "C" __global__ void sum_rows(const elem* rows, const i64* row_of_place, elem* sums, i64 k, i64 width)
{
    const i64* mine = row_of_place + (i64)blockIdx.x * k;
    for (int i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC)
    {
        float acc[VEC];
        for (int c = 0; c < VEC; c++) acc[c] = 0.f;
        int j = 0;
        for (; j + 4 <= k; j += 4)
        {
            Pack p[4];
#pragma unroll
            for (int n = 0; n < 4; n++) p[n] = load(rows + mine[j + n] * width + i);
#pragma unroll
            for (int n = 0; n < 4; n++)
                for (int c = 0; c < VEC; c++) acc[c] += up(p[n].v[c]);
        }
        for (; j < k; j++)
        {
            Pack p = load(rows + mine[j] * width + i);
            for (int c = 0; c < VEC; c++) acc[c] += up(p.v[c]);
        }
        Pack out;
        for (int c = 0; c < VEC; c++) out.v[c] = down(acc[c]);
        store(sums + (i64)blockIdx.x * width + i, out);
    }
}
