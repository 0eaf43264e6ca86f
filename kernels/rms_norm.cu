// Root-mean-square norm over rows of width d.
//
//   y = x · s · w      s = 1 / √(mean x² + ε), one a row
//   gx = s·(g⊙w) − x · s³/d · Σ(g⊙w⊙x)      gw += Σ_rows g ⊙ x · s
//
// Shapes: x, y, g, gx [rows, d]; w [d]; inv_rms [rows] f32; gw [d] f32; partial [⌈rows / 64⌉, d] f32.
// x, y, g, gx and w are f32 or bf16; all sums are f32. Any rows and d; rows whose start is a multiple of four numbers
// are read four at a time.
//
// Bound by memory: forward moves 2·rows·d numbers, backward 3·rows·d for gx and 2·rows·d for gw. A row is read twice,
// the second time from the first cache.
//
// Source: Zhang & Sennrich 2019, arXiv:1910.07467. CPU twin: crates/kernels/src/rms_norm.rs.
#include "common.cuh"

// Rows whose weight gradients one block adds up; the CPU twin cuts there too.
static const int GRADIENT_ROWS = 64;

// A row by a whole block (WARPS > 1), or by each warp of a block (WARPS = 1).
template <int WARPS> struct Row {
    static const int THREADS = WARPS * 32;
    static __device__ __forceinline__ int64_t index() {
        return WARPS > 1 ? int64_t(blockIdx.x) : int64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    }
    static __device__ __forceinline__ int lane() { return threadIdx.x % THREADS; }
};

template <typename T, int WARPS>
__device__ __forceinline__ void forward(const T* __restrict__ x, const T* __restrict__ w, T* __restrict__ y,
                                        float* __restrict__ inv_rms, int64_t rows, int d, float eps) {
    __shared__ float shared[WARPS];
    const int64_t row = Row<WARPS>::index();
    if (row >= rows) return; // a whole warp or a whole block
    const int lane = Row<WARPS>::lane(), threads = Row<WARPS>::THREADS;
    x += row * d;
    y += row * d;
    const bool wide = d % 4 == 0 && fours(x) && fours(w) && fours(y);
    float sum = 0.0f;
    if (wide) {
#pragma unroll 4
        for (int i = lane * 4; i < d; i += threads * 4) {
            const float4 v = load4(x + i);
            sum += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
        }
    } else {
        for (int i = lane; i < d; i += threads) {
            const float v = to_f32(x[i]);
            sum += v * v;
        }
    }
    sum = block_sum<WARPS>(sum, shared);
    const float s = 1.0f / sqrtf(sum / float(d) + eps);
    if (lane == 0) inv_rms[row] = s;
    if (wide) {
#pragma unroll 4
        for (int i = lane * 4; i < d; i += threads * 4) {
            const float4 v = load4(x + i), f = load4(w + i);
            store4(y + i, make_float4(v.x * s * f.x, v.y * s * f.y, v.z * s * f.z, v.w * s * f.w));
        }
    } else {
        for (int i = lane; i < d; i += threads) y[i] = from_f32<T>(to_f32(x[i]) * s * to_f32(w[i]));
    }
}

template <typename T, int WARPS>
__device__ __forceinline__ void backward_x(const T* __restrict__ g, const T* __restrict__ x, const T* __restrict__ w,
                                           const float* __restrict__ inv_rms, T* __restrict__ gx, int64_t rows,
                                           int d) {
    __shared__ float shared[WARPS];
    const int64_t row = Row<WARPS>::index();
    if (row >= rows) return;
    const int lane = Row<WARPS>::lane(), threads = Row<WARPS>::THREADS;
    g += row * d;
    x += row * d;
    gx += row * d;
    const bool wide = d % 4 == 0 && fours(g) && fours(x) && fours(w) && fours(gx);
    float sum = 0.0f;
    if (wide) {
#pragma unroll 2
        for (int i = lane * 4; i < d; i += threads * 4) {
            const float4 a = load4(g + i), b = load4(x + i), f = load4(w + i);
            sum += a.x * f.x * b.x + a.y * f.y * b.y + (a.z * f.z * b.z + a.w * f.w * b.w);
        }
    } else {
        for (int i = lane; i < d; i += threads) sum += to_f32(g[i]) * to_f32(w[i]) * to_f32(x[i]);
    }
    sum = block_sum<WARPS>(sum, shared);
    const float s = inv_rms[row], f = s * s * s / float(d) * sum;
    if (wide) {
#pragma unroll 2
        for (int i = lane * 4; i < d; i += threads * 4) {
            const float4 a = load4(g + i), b = load4(x + i), c = load4(w + i);
            store4(gx + i, make_float4(a.x * c.x * s - b.x * f, a.y * c.y * s - b.y * f, a.z * c.z * s - b.z * f,
                                       a.w * c.w * s - b.w * f));
        }
    } else {
        for (int i = lane; i < d; i += threads)
            gx[i] = from_f32<T>(to_f32(g[i]) * to_f32(w[i]) * s - to_f32(x[i]) * f);
    }
}

// partial[b, i] = Σ g·x·s over the rows of block b, one after the other, each step rounded as the CPU twin rounds it.
// Grid: (⌈rows / 64⌉, ⌈d / 256⌉) blocks of 256 threads; the sum below has ⌈d / 256⌉.
template <typename T>
__device__ __forceinline__ void weight_partial(const T* __restrict__ g, const T* __restrict__ x,
                                               const float* __restrict__ inv_rms, float* __restrict__ partial,
                                               int64_t rows, int d) {
    const int i = blockIdx.y * blockDim.x + threadIdx.x;
    const int64_t first = int64_t(blockIdx.x) * GRADIENT_ROWS;
    if (i >= d) return;
    const int n = int(rows - first < GRADIENT_ROWS ? rows - first : GRADIENT_ROWS);
    g += first * d + i;
    x += first * d + i;
    float sum = 0.0f;
#pragma unroll 8
    for (int r = 0; r < n; r++) {
        const float product = __fmul_rn(to_f32(g[int64_t(r) * d]), to_f32(x[int64_t(r) * d]));
        sum = __fadd_rn(sum, __fmul_rn(product, inv_rms[first + r]));
    }
    partial[int64_t(blockIdx.x) * d + i] = sum;
}

// gw[i] += Σ_b partial[b, i]
extern "C" __global__ void __launch_bounds__(256) rms_norm_weight_sum(const float* __restrict__ partial,
                                                                      float* __restrict__ gw, int64_t blocks, int d) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= d) return;
    float sum = gw[i];
#pragma unroll 8
    for (int64_t b = 0; b < blocks; b++) sum = __fadd_rn(sum, partial[b * d + i]);
    gw[i] = sum;
}

// Grid: `rows` blocks of 256 threads (wide rows), or ⌈rows / 8⌉ of them (a warp a row, for d up to 1024).
#define RMS_NORM(T, NAME)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) rms_norm_forward_##NAME(                                       \
        const T* x, const T* w, T* y, float* inv_rms, int64_t rows, int d, float eps) {                              \
        forward<T, 8>(x, w, y, inv_rms, rows, d, eps);                                                                \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) rms_norm_forward_narrow_##NAME(                                \
        const T* x, const T* w, T* y, float* inv_rms, int64_t rows, int d, float eps) {                              \
        forward<T, 1>(x, w, y, inv_rms, rows, d, eps);                                                                \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_##NAME(                                      \
        const T* g, const T* x, const T* w, const float* inv_rms, T* gx, int64_t rows, int d) {                      \
        backward_x<T, 8>(g, x, w, inv_rms, gx, rows, d);                                                              \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_narrow_##NAME(                               \
        const T* g, const T* x, const T* w, const float* inv_rms, T* gx, int64_t rows, int d) {                      \
        backward_x<T, 1>(g, x, w, inv_rms, gx, rows, d);                                                              \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) rms_norm_weight_partial_##NAME(                                \
        const T* g, const T* x, const float* inv_rms, float* partial, int64_t rows, int d) {                         \
        weight_partial<T>(g, x, inv_rms, partial, rows, d);                                                           \
    }

RMS_NORM(float, f32)
RMS_NORM(bf16, bf16)
