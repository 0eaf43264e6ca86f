// A linear on a weight in NF4 blocks: the dense weight exists tile by tile, in registers and shared memory.
//
//   forward    y = x · Ŵᵀ      x [m, in], y [m, out]
//   backward   gx = g · Ŵ      g [m, out], gx [m, in]
//   Ŵ [out, in]: ŵ = NF4[code] · scale of the block, see nf4.cuh
//
// x, y, g and gx are f32 or bf16; sums are f32. In f32 the decoded weight has the CPU's bits; in bf16 with many rows it
// is rounded to bf16 for the matrix unit. Any m, in and out; in that is a multiple of 16 is fast.
//
// One to eight rows are bound by memory: ½ byte and a scale's share a weight. A warp makes R outputs, so that each
// number of x in shared memory serves R weights; the codes of the next step are on their way meanwhile. Many rows are
// bound by the matrix unit, see tile.cuh.
//
// Source: Dettmers et al. 2023, arXiv:2305.14314. CPU twins: crates/quant-block/src/nf4_codec.rs,
// crates/kernels/src/packed.rs and matmul.rs.
#include "nf4.cuh"
#include "tile.cuh"

static const int WARPS = 8;
static const int SPAN = 512; // inputs a warp takes at a time: sixteen a lane

// Rows 0..m of y, m ≤ M. Grid: ⌈out / (8·R)⌉ blocks of 256 threads.
template <typename T, int M, int R, bool ALIGNED>
__device__ __forceinline__ void few(const T* __restrict__ x, const Nf4Weight& w, T* __restrict__ y, int m) {
    // x in shared memory: SPANS spans of each row, in quads; a lane's four quads lie 34 quads apart, so that neither
    // the lanes that read nor those that write meet in a bank.
    const int SPANS = 8 / M, APART = 34;
    __shared__ Nf4Tables tables;
    __shared__ float4 xs[M * SPANS * 4 * APART];
    const int lane = threadIdx.x % 32, first = (blockIdx.x * WARPS + threadIdx.x / 32) * R;
    const int inputs = w.columns;
    const bool wide = inputs % 4 == 0 && fours(x);
    tables.fill(w);

    typedef Nf4Segment<ALIGNED> Segment;
    Segment next[R];
#pragma unroll
    for (int r = 0; r < R; r++) next[r] = Segment::fetch(w, first + r, lane * 16);
    float acc[R][M] = {};
    for (int stage = 0; stage < inputs; stage += SPANS * SPAN) {
        __syncthreads();
        for (int i = threadIdx.x; i < M * SPANS * SPAN / 4; i += WARPS * 32) {
            const int row = i / (SPANS * SPAN / 4), in_row = i % (SPANS * SPAN / 4), at = stage + in_row * 4;
            float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (row < m && at < inputs) {
                const T* p = x + int64_t(row) * inputs + at;
                if (wide) {
                    v = load4(p);
                } else {
                    v.x = to_f32(p[0]);
                    if (at + 1 < inputs) v.y = to_f32(p[1]);
                    if (at + 2 < inputs) v.z = to_f32(p[2]);
                    if (at + 3 < inputs) v.w = to_f32(p[3]);
                }
            }
            const int span = in_row / (SPAN / 4), in_span = in_row % (SPAN / 4);
            xs[((row * SPANS + span) * 4 + in_span % 4) * APART + in_span / 4] = v;
        }
        __syncthreads();
#pragma unroll 1
        for (int span = 0; span < SPANS && stage + span * SPAN < inputs; span++) {
            Segment now[R];
            float scale[R];
            const int column = stage + (span + 1) * SPAN + lane * 16;
#pragma unroll
            for (int r = 0; r < R; r++) {
                now[r] = next[r];
                next[r] = Segment::fetch(w, first + r, column);
                scale[r] = now[r].valid > 0 ? now[r].scale.value(w, tables) : 0.0f;
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float v[R][8];
#pragma unroll
                for (int r = 0; r < R; r++) {
                    const uint32_t word = half == 0 ? now[r].codes.x : now[r].codes.y;
                    const float other = !ALIGNED && now[r].split < now[r].valid ? now[r].second.value(w, tables) : 0.0f;
#pragma unroll
                    for (int j = 0; j < 8; j++) {
                        v[r][j] = tables.value(word, j);
                        // Aligned ones have one scale, which their sum takes.
                        if (!ALIGNED) v[r][j] *= half * 8 + j < now[r].split ? scale[r] : other;
                    }
                }
#pragma unroll
                for (int row = 0; row < M; row++) {
                    const float4* quads = xs + ((row * SPANS + span) * 4 + half * 2) * APART + lane;
                    const float4 a = quads[0], b = quads[APART];
#pragma unroll
                    for (int r = 0; r < R; r++) {
                        float sum = v[r][0] * a.x;
                        sum = fmaf(v[r][1], a.y, sum);
                        sum = fmaf(v[r][2], a.z, sum);
                        sum = fmaf(v[r][3], a.w, sum);
                        sum = fmaf(v[r][4], b.x, sum);
                        sum = fmaf(v[r][5], b.y, sum);
                        sum = fmaf(v[r][6], b.z, sum);
                        sum = fmaf(v[r][7], b.w, sum);
                        acc[r][row] = ALIGNED ? fmaf(scale[r], sum, acc[r][row]) : acc[r][row] + sum;
                    }
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int row = 0; row < M; row++) {
            const float sum = warp_sum(acc[r][row]);
            if (lane == r * M + row && row < m && first + r < w.rows)
                y[int64_t(row) * w.rows + first + r] = from_f32<T>(sum);
        }
    }
}

template <bool ALIGNED> struct Nf4Source {
    typedef Nf4Segment<ALIGNED> Segment;
    const Nf4Weight& weight;
    const Nf4Tables& tables;

    __device__ __forceinline__ Segment fetch(int row, int column) const { return Segment::fetch(weight, row, column); }
    __device__ __forceinline__ void decode(const Segment& s, float (&out)[16]) const { s.decode(weight, tables, out); }
};

// Grid: (⌈m / 128⌉, ⌈out / 128⌉) blocks of 256 threads, for the gradient (⌈m / 128⌉, ⌈in / 128⌉).
template <typename T, bool FORWARD, bool ALIGNED>
__device__ __forceinline__ void many(const T* __restrict__ a, const Nf4Weight& w, T* __restrict__ c, int m) {
    __shared__ Nf4Tables tables;
    tables.fill(w);
    __syncthreads();
    const Nf4Source<ALIGNED> source{w, tables};
    if (FORWARD) tile_product<T, true>(a, source, c, m, w.rows, w.columns);
    else tile_product<T, false>(a, source, c, m, w.columns, w.rows);
}

#define ARGUMENTS(T)                                                                                                  \
    const T *x, const uint8_t *packed, const uint8_t *codes, const float *absmax, const float *map, float offset,    \
        int shift, T *y, int m, int out, int in
#define WEIGHT Nf4Weight{packed, codes, absmax, map, offset, shift, out, in}

#define FEW(T, NAME, M, R, ALIGNED, SUFFIX)                                                                           \
    extern "C" __global__ void __launch_bounds__(256, 2) nf4_linear_few_##M##SUFFIX##_##NAME(ARGUMENTS(T)) {         \
        const Nf4Weight w = WEIGHT;                                                                                   \
        few<T, M, R, ALIGNED>(x, w, y, m);                                                                            \
    }
#define FEW_ROWS(T, NAME, M)                                                                                          \
    FEW(T, NAME, M, 4, true, )                                                                                        \
    FEW(T, NAME, M, 2, true, _short)                                                                                  \
    FEW(T, NAME, M, 1, false, _any)
#define MANY(T, NAME, DIRECTION, FORWARD, ALIGNED, SUFFIX)                                                            \
    extern "C" __global__ void __launch_bounds__(256, 1) nf4_linear_##DIRECTION##SUFFIX##_##NAME(ARGUMENTS(T)) {     \
        const Nf4Weight w = WEIGHT;                                                                                   \
        many<T, FORWARD, ALIGNED>(x, w, y, m);                                                                        \
    }
#define NF4_LINEAR(T, NAME)                                                                                           \
    FEW_ROWS(T, NAME, 1)                                                                                              \
    FEW_ROWS(T, NAME, 2)                                                                                              \
    FEW_ROWS(T, NAME, 4)                                                                                              \
    FEW_ROWS(T, NAME, 8)                                                                                              \
    MANY(T, NAME, forward, true, true, )                                                                              \
    MANY(T, NAME, forward, true, false, _any)                                                                         \
    MANY(T, NAME, backward, false, true, )                                                                            \
    MANY(T, NAME, backward, false, false, _any)

NF4_LINEAR(float, f32)
NF4_LINEAR(bf16, bf16)
