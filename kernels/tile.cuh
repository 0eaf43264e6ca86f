// A product whose second factor is made tile by tile: C[m, n] = A[m, k] · B, B never in memory.
//
// One block of 256 threads makes 128×128 of C; each step brings 32 words (32 f32 or 64 bf16) of k to shared memory.
// The next step's numbers are on their way from memory into registers meanwhile. Eight warps, two by four, hold 64×32
// of C each. Any m, n and k.
//
// bf16: products of bf16, sums in f32. f32: each factor is split into two tf32, hi + lo, and
// a·b ≈ lo·hi + hi·lo + hi·hi; what is left out is below 2⁻²² of a·b, so this is f32's own accuracy.
//
// A `Source` makes B from what is stored, sixteen neighbours of a row of the stored [rows, columns] at a time:
//   Segment fetch(int row, int column)               what must be read, without waiting for it
//   void decode(const Segment&, float (&out)[16])    the numbers; 0 past the end
// A product with B = storedᵀ (k = columns) is FORWARD; one with B = stored (k = rows) is the gradient to the input.
#pragma once

#include "common.cuh"

static const int TILE = 128;       // rows and columns of C a block
static const int WORDS = 32;       // words of k a step
static const int STRIDE = 36;      // words from row to row in shared memory: no two lanes of a fragment share a bank
static const int STRIDE_T = 152;   // the same where rows of B are k; columns are spread by 4 words each 32
static const int B_WORDS = 32 * STRIDE_T;
static const int TILE_THREADS = 256;

template <typename T> struct Words;
template <> struct Words<float> { static const int PER = 1; };
template <> struct Words<bf16> { static const int PER = 2; };

__device__ __forceinline__ int spread(int column) { return column + column / 32 * 4; }

// A word of a row: its number at `at`, or that and the next one; zeros past the end.
__device__ __forceinline__ uint32_t word_of(const float* p, int at, int k) {
    return at < k ? __float_as_uint(p[at]) : 0u;
}
__device__ __forceinline__ uint32_t word_of(const bf16* p, int at, int k) {
    return pack_bf16(at < k ? to_f32(p[at]) : 0.0f, at + 1 < k ? to_f32(p[at + 1]) : 0.0f);
}

// Four words of a row of A, zeros past its end.
template <typename T>
__device__ __forceinline__ uint4 quad(const T* __restrict__ a, int m, int k, int row, int at, bool wide) {
    const int PER = Words<T>::PER;
    if (row >= m || at >= k) return make_uint4(0u, 0u, 0u, 0u);
    const T* p = a + int64_t(row) * k;
    if (wide) return *reinterpret_cast<const uint4*>(p + at); // k is a multiple of four words, and so is `at`
    return make_uint4(word_of(p, at, k), word_of(p, at + PER, k), word_of(p, at + 2 * PER, k),
                      word_of(p, at + 3 * PER, k));
}

template <typename T, bool FORWARD, typename Source>
__device__ __forceinline__ void tile_product(const T* __restrict__ a, const Source& source, T* __restrict__ c, int m,
                                             int n, int k) {
    const int PER = Words<T>::PER, STEP = WORDS * PER;
    __shared__ __align__(16) uint32_t as[TILE * STRIDE];
    __shared__ __align__(16) uint32_t bs[B_WORDS];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int row0 = blockIdx.x * TILE, column0 = blockIdx.y * TILE;
    const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
    const bool wide = k % (4 * PER) == 0 && reinterpret_cast<uintptr_t>(a) % 16 == 0;

    uint4 next_a[4];
    typename Source::Segment next_b[PER];
    auto fetch = [&](int k0) {
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const int i = q * TILE_THREADS + thread;
            next_a[q] = quad(a, m, k, row0 + i / 8, k0 + i % 8 * 4 * PER, wide);
        }
#pragma unroll
        for (int s = 0; s < PER; s++) {
            if (FORWARD) {
                const int i = s * TILE_THREADS + thread; // 2·PER segments a row
                next_b[s] = source.fetch(column0 + i / (2 * PER), k0 + i % (2 * PER) * 16);
            } else {
                next_b[s] = source.fetch(k0 + thread / 8 * PER + s, column0 + thread % 8 * 16);
            }
        }
    };
    auto keep = [&]() {
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const int i = q * TILE_THREADS + thread;
            *reinterpret_cast<uint4*>(&as[i / 8 * STRIDE + i % 8 * 4]) = next_a[q];
        }
        if (FORWARD) {
#pragma unroll
            for (int s = 0; s < PER; s++) {
                float v[16];
                source.decode(next_b[s], v);
                const int i = s * TILE_THREADS + thread;
                uint32_t* to = &bs[i / (2 * PER) * STRIDE + i % (2 * PER) * 16 / PER];
#pragma unroll
                for (int j = 0; j < 16; j += 4 * PER) {
                    uint4 words;
                    if (PER == 1)
                        words = make_uint4(__float_as_uint(v[j]), __float_as_uint(v[j + 1]), __float_as_uint(v[j + 2]),
                                           __float_as_uint(v[j + 3]));
                    else
                        words = make_uint4(pack_bf16(v[j], v[j + 1]), pack_bf16(v[j + 2], v[j + 3]),
                                           pack_bf16(v[(j + 4) % 16], v[(j + 5) % 16]),
                                           pack_bf16(v[(j + 6) % 16], v[(j + 7) % 16]));
                    *reinterpret_cast<uint4*>(to + j / PER) = words;
                }
            }
        } else {
            float v[PER][16];
#pragma unroll
            for (int s = 0; s < PER; s++) source.decode(next_b[s], v[s]);
            uint32_t* to = &bs[thread / 8 * STRIDE_T + spread(thread % 8 * 16)];
#pragma unroll
            for (int j = 0; j < 16; j += 4) {
                uint32_t w[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    w[i] = PER == 1 ? __float_as_uint(v[0][j + i]) : pack_bf16(v[0][j + i], v[PER - 1][j + i]);
                *reinterpret_cast<uint4*>(to + j) = make_uint4(w[0], w[1], w[2], w[3]);
            }
        }
    };

    float acc[4][4][4] = {};
    fetch(0);
    for (int k0 = 0; k0 < k; k0 += STEP) {
        keep();
        __syncthreads();
        if (k0 + STEP < k) fetch(k0 + STEP);
#pragma unroll
        for (int step = 0; step < WORDS; step += 8) {
            const int word = step + lane % 4;
            uint32_t b[4][2], b_lo[4][2];
#pragma unroll
            for (int t = 0; t < 4; t++) {
                const int column = warp_column + t * 8 + lane / 4;
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int w = word + 4 * i;
                    const uint32_t bits = bs[FORWARD ? column * STRIDE + w : w * STRIDE_T + spread(column)];
                    b[t][i] = bits;
                    if (PER == 1) {
                        b[t][i] = round_tf32(__uint_as_float(bits));
                        b_lo[t][i] = round_tf32(__uint_as_float(bits) - __uint_as_float(b[t][i]));
                    }
                }
            }
#pragma unroll
            for (int s = 0; s < 4; s++) {
                uint32_t x[4], x_lo[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int row = warp_row + s * 16 + lane / 4 + i % 2 * 8;
                    const uint32_t bits = as[row * STRIDE + word + i / 2 * 4];
                    x[i] = bits;
                    if (PER == 1) {
                        x[i] = round_tf32(__uint_as_float(bits));
                        x_lo[i] = round_tf32(__uint_as_float(bits) - __uint_as_float(x[i]));
                    }
                }
#pragma unroll
                for (int t = 0; t < 4; t++) {
                    if (PER == 1) {
                        mma_tf32(acc[s][t], x_lo, b[t]);
                        mma_tf32(acc[s][t], x, b_lo[t]);
                        mma_tf32(acc[s][t], x, b[t]);
                    } else {
                        mma_bf16(acc[s][t], x, b[t]);
                    }
                }
            }
        }
        __syncthreads();
    }

    const bool pairs = n % 2 == 0 && reinterpret_cast<uintptr_t>(c) % (2 * sizeof(T)) == 0;
#pragma unroll
    for (int s = 0; s < 4; s++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = row0 + warp_row + s * 16 + lane / 4 + half * 8;
            if (row >= m) continue;
#pragma unroll
            for (int t = 0; t < 4; t++) {
                const int column = column0 + warp_column + t * 8 + lane % 4 * 2;
                T* to = c + int64_t(row) * n + column;
                const float lo = acc[s][t][2 * half], hi = acc[s][t][2 * half + 1];
                if (pairs && column < n) {
                    if (PER == 1) *reinterpret_cast<float2*>(to) = make_float2(lo, hi);
                    else *reinterpret_cast<uint32_t*>(to) = pack_bf16(lo, hi);
                } else {
                    if (column < n) to[0] = from_f32<T>(lo);
                    if (column + 1 < n) to[1] = from_f32<T>(hi);
                }
            }
        }
    }
}
