// Random directions by address, added to weights or multiplied with them; a direction is never stored.
//
//   add      x[i] ← x[i] + s · z(first + i)
//   add_at   x[i] ← x[i] + s · z(places[i])
//   linear   y[r, o] = Σ_i x[r, i] · (w[o, i] + s · z(first + o·in + i))
//
//   normal   z(2j), z(2j + 1) = √(−2 ln u) · (cos, sin)(2π v),  u = (word 2j + ½) / 2³²,  v = word 2j + 1 / 2³²
//   sign     z(i) = −1 where word i has its highest bit, else +1
//   words    4b … 4b + 3 = Philox4x32-10 of counter (b, stream id) under the key
//
// Shapes: x [n]; places [n] u32; for the linear x [m, in], w [out, in], y [m, out]. Numbers are f32 or bf16.
//
// Words and normals are the CPU's to the bit: normals are made of sums, products, quotients and roots of f32, each rounded
// by itself, in the CPU's order. s·z is rounded before the sum, as on the CPU, and a bf16 weight is rounded to bf16 after
// it; so the linear multiplies what `add` would leave behind.
//
// add moves 8 bytes (f32) an entry and makes a fourth of a Philox block and half a Box–Muller pair for it.
//
// Source: Salmon et al. 2011 (Philox); Malladi et al. 2023, arXiv:2305.17333 (MeZO).
// CPU twins: crates/kernels/src/philox.rs, box_muller.rs and perturb.rs.
#include "tile.cuh"

struct Stream {
    uint32_t key0, key1, id0, id1;
};

// Words 4·block … 4·block + 3.
__device__ __forceinline__ uint4 philox(const Stream& s, uint64_t block) {
    uint32_t a = uint32_t(block), b = uint32_t(block >> 32), c = s.id0, d = s.id1, k0 = s.key0, k1 = s.key1;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t p = uint64_t(0xD2511F53u) * a, q = uint64_t(0xCD9E8D57u) * c;
        a = uint32_t(q >> 32) ^ b ^ k0;
        b = uint32_t(q);
        c = uint32_t(p >> 32) ^ d ^ k1;
        d = uint32_t(p);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(a, b, c, d);
}

// x·y + z, both rounded.
__device__ __forceinline__ float mul_add(float x, float y, float z) { return __fadd_rn(__fmul_rn(x, y), z); }

// ln((a + ½)/2³²) = e·ln 2 + 2·artanh(d/(2 + d)) where (a + ½)/2³² = (1 + d)·2ᵉ and 1 + d is from √½ to √2.
__device__ __forceinline__ float ln_of_word(uint32_t a) {
    const uint32_t half_root = 0x3f3504f3u;
    const bool upper = a >> 31 != 0; // from ½ on, the distance to 1 is what is exact
    const float small = __fmul_rn(__fadd_rn(float(int32_t(upper ? ~a : a)), 0.5f), 0x1p-32f);
    const float x = upper ? __fsub_rn(1.0f, small) : small;
    const int32_t above = int32_t(__float_as_uint(x) - half_root);
    const int32_t e = above >> 23;
    const float left = __fsub_rn(__uint_as_float((uint32_t(above) & 0x7fffffu) + half_root), 1.0f);
    const float d = e == 0 ? -small : left;
    const float s = __fdiv_rn(d, __fadd_rn(2.0f, d)), q = __fmul_rn(s, s), twice = __fadd_rn(s, s);
    float series = 1.0f / 9.0f;
    series = mul_add(series, q, 1.0f / 7.0f);
    series = mul_add(series, q, 1.0f / 5.0f);
    series = mul_add(series, q, 1.0f / 3.0f);
    return mul_add(float(e), 0.693147180559945309f, mul_add(twice, __fmul_rn(q, series), twice));
}

// Box–Muller. Both words are reduced in integers first, so that f32 loses nothing near u = 1 or near a zero of the
// sine or cosine.
__device__ __forceinline__ float2 normals(uint32_t a, uint32_t b) {
    const float radius = __fsqrt_rn(__fmul_rn(-2.0f, ln_of_word(a)));
    const uint32_t quarter = (b + 0x20000000u) >> 30; // the nearest quarter turn, and at most an eighth beside it
    const float x = __fmul_rn(float(int32_t(b - (quarter << 30))), 6.28318530717958648f * 0x1p-32f);
    const float q = __fmul_rn(x, x);
    float s = 1.0f / 362880.0f, c = -1.0f / 3628800.0f;
    s = mul_add(s, q, 1.0f / -5040.0f), c = mul_add(c, q, 1.0f / 40320.0f);
    s = mul_add(s, q, 1.0f / 120.0f), c = mul_add(c, q, 1.0f / -720.0f);
    s = mul_add(s, q, 1.0f / -6.0f), c = mul_add(c, q, 1.0f / 24.0f);
    s = mul_add(x, __fmul_rn(q, s), x), c = mul_add(q, __fsub_rn(__fmul_rn(q, c), 0.5f), 1.0f);
    const float sine = quarter & 1 ? c : s, cosine = quarter & 1 ? s : c;
    const bool minus_cosine = quarter == 1 || quarter == 2, minus_sine = (quarter & 2) != 0;
    return make_float2(__fmul_rn(radius, minus_cosine ? -cosine : cosine),
                       __fmul_rn(radius, minus_sine ? -sine : sine));
}

enum Draw { NORMAL, SIGN };

__device__ __forceinline__ float sign(uint32_t word) { return word >> 31 == 0 ? 1.0f : -1.0f; }

// z(4·block) … z(4·block + 3)
template <Draw DRAW> __device__ __forceinline__ float4 draw4(const Stream& s, uint64_t block) {
    const uint4 w = philox(s, block);
    if (DRAW == SIGN) return make_float4(sign(w.x), sign(w.y), sign(w.z), sign(w.w));
    const float2 a = normals(w.x, w.y), b = normals(w.z, w.w);
    return make_float4(a.x, a.y, b.x, b.y);
}

template <Draw DRAW> __device__ __forceinline__ float draw(const Stream& s, uint64_t index) {
    const uint4 w = philox(s, index / 4);
    const uint32_t at = uint32_t(index % 4), even = at < 2 ? w.x : w.z, odd = at < 2 ? w.y : w.w;
    if (DRAW == SIGN) return sign(at % 2 == 0 ? even : odd);
    const float2 pair = normals(even, odd);
    return at % 2 == 0 ? pair.x : pair.y;
}

// w + s·z as the CPU rounds it.
template <typename T> __device__ __forceinline__ float moved(float w, float s, float z) {
    const float sum = __fadd_rn(w, __fmul_rn(s, z));
    return to_f32(from_f32<T>(sum));
}

// A thread takes the entries of one Philox block. Grid: as many blocks of 256 as ⌈n / 4⌉ + 1 threads need.
template <typename T, Draw DRAW>
__device__ __forceinline__ void add(T* __restrict__ x, int64_t n, uint64_t first, Stream stream, float s) {
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t begin = thread * 4 - int64_t(first % 4); // entry of x that has the block's first word
    if (begin >= n) return;
    const float4 z = draw4<DRAW>(stream, first / 4 + thread);
    if (begin >= 0 && begin + 4 <= n && fours(x + begin)) {
        const float4 v = load4(x + begin);
        store4(x + begin, make_float4(moved<T>(v.x, s, z.x), moved<T>(v.y, s, z.y), moved<T>(v.z, s, z.z),
                                      moved<T>(v.w, s, z.w)));
        return;
    }
    const float four[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int64_t i = begin + j;
        if (i >= 0 && i < n) x[i] = from_f32<T>(moved<T>(to_f32(x[i]), s, four[j]));
    }
}

// Grid: as many blocks of 256 as n threads need.
template <typename T, Draw DRAW>
__device__ __forceinline__ void add_at(T* __restrict__ x, const uint32_t* __restrict__ places, int64_t n,
                                       Stream stream, float s) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) x[i] = from_f32<T>(moved<T>(to_f32(x[i]), s, draw<DRAW>(stream, places[i])));
}

// A dense weight under a direction.
template <typename T, Draw DRAW> struct Perturbed {
    const T* __restrict__ w;
    int rows, columns;
    uint64_t first;
    Stream stream;
    float s;

    // z of four neighbours from `at` on: one block where `at` is a multiple of four, else parts of two.
    __device__ __forceinline__ float4 direction(uint64_t at) const {
        const float4 a = draw4<DRAW>(stream, at / 4);
        const uint32_t skip = uint32_t(at % 4);
        if (skip == 0) return a;
        const float4 b = draw4<DRAW>(stream, at / 4 + 1);
        if (skip == 1) return make_float4(a.y, a.z, a.w, b.x);
        if (skip == 2) return make_float4(a.z, a.w, b.x, b.y);
        return make_float4(a.w, b.x, b.y, b.z);
    }
    // Four neighbours of a row as they lie in memory, 0 past its end.
    __device__ __forceinline__ float4 stored(int row, int column) const {
        if (row >= rows || column >= columns) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const T* p = w + int64_t(row) * columns + column;
        if (column + 4 <= columns && fours(p)) return load4(p);
        return make_float4(to_f32(p[0]), column + 1 < columns ? to_f32(p[1]) : 0.0f,
                           column + 2 < columns ? to_f32(p[2]) : 0.0f, column + 3 < columns ? to_f32(p[3]) : 0.0f);
    }
    // The same, moved; past a row's end and past the last row 0.
    __device__ __forceinline__ float4 move(float4 v, int row, int column) const {
        if (row >= rows || column >= columns) return v;
        const float4 z = direction(first + uint64_t(row) * uint64_t(columns) + uint64_t(column));
        return make_float4(moved<T>(v.x, s, z.x), column + 1 < columns ? moved<T>(v.y, s, z.y) : 0.0f,
                           column + 2 < columns ? moved<T>(v.z, s, z.z) : 0.0f,
                           column + 3 < columns ? moved<T>(v.w, s, z.w) : 0.0f);
    }

    struct Segment {
        float4 w[4];
        int row, column;
    };
    __device__ __forceinline__ Segment fetch(int row, int column) const {
        Segment segment;
        segment.row = row;
        segment.column = column;
#pragma unroll
        for (int q = 0; q < 4; q++) segment.w[q] = stored(row, column + q * 4);
        return segment;
    }
    __device__ __forceinline__ void decode(const Segment& segment, float (&out)[16]) const {
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const float4 v = move(segment.w[q], segment.row, segment.column + q * 4);
            out[4 * q] = v.x;
            out[4 * q + 1] = v.y;
            out[4 * q + 2] = v.z;
            out[4 * q + 3] = v.w;
        }
    }
};

// Rows 0..m of y, m ≤ M: a warp an output, four neighbouring inputs a lane. Grid: ⌈out / 8⌉ blocks of 256 threads.
template <typename T, int M, Draw DRAW>
__device__ __forceinline__ void few(const T* __restrict__ x, const Perturbed<T, DRAW>& w, T* __restrict__ y, int m) {
    const int lane = threadIdx.x % 32, o = blockIdx.x * 8 + threadIdx.x / 32;
    if (o >= w.rows) return;
    const int inputs = w.columns;
    const bool wide = inputs % 4 == 0 && fours(x);
    float acc[M] = {};
    float4 next = w.stored(o, lane * 4);
    for (int i = lane * 4; i < inputs; i += 128) {
        const float4 v = w.move(next, o, i);
        next = w.stored(o, i + 128);
#pragma unroll
        for (int r = 0; r < M; r++) {
            if (r >= m) continue;
            const T* p = x + int64_t(r) * inputs + i;
            float4 a;
            if (wide) a = load4(p);
            else
                a = make_float4(to_f32(p[0]), i + 1 < inputs ? to_f32(p[1]) : 0.0f, i + 2 < inputs ? to_f32(p[2]) : 0.0f,
                                i + 3 < inputs ? to_f32(p[3]) : 0.0f);
            acc[r] = fmaf(v.x, a.x, fmaf(v.y, a.y, fmaf(v.z, a.z, fmaf(v.w, a.w, acc[r]))));
        }
    }
#pragma unroll
    for (int r = 0; r < M; r++) {
        const float sum = warp_sum(acc[r]);
        if (lane == r && r < m) y[int64_t(r) * w.rows + o] = from_f32<T>(sum);
    }
}

#define STREAM uint32_t key0, uint32_t key1, uint32_t id0, uint32_t id1
#define MAKE_STREAM Stream{key0, key1, id0, id1}

#define PERTURB(T, NAME, DRAW, DRAWN)                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) perturb_add_##DRAWN##_##NAME(T* x, int64_t n, uint64_t first,   \
                                                                                   STREAM, float s) {                 \
        add<T, DRAW>(x, n, first, MAKE_STREAM, s);                                                                    \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) perturb_add_at_##DRAWN##_##NAME(                               \
        T* x, const uint32_t* places, int64_t n, STREAM, float s) {                                                   \
        add_at<T, DRAW>(x, places, n, MAKE_STREAM, s);                                                                \
    }                                                                                                                 \
    PERTURB_FEW(T, NAME, DRAW, DRAWN, 1)                                                                              \
    PERTURB_FEW(T, NAME, DRAW, DRAWN, 4)                                                                              \
    PERTURB_FEW(T, NAME, DRAW, DRAWN, 8)                                                                              \
    extern "C" __global__ void __launch_bounds__(256, 1) perturb_linear_##DRAWN##_##NAME(                            \
        const T* x, const T* w, T* y, int m, int out, int in, uint64_t first, STREAM, float s) {                      \
        const Perturbed<T, DRAW> weight{w, out, in, first, MAKE_STREAM, s};                                           \
        tile_product<T, true>(x, weight, y, m, out, in);                                                              \
    }
#define PERTURB_FEW(T, NAME, DRAW, DRAWN, M)                                                                          \
    extern "C" __global__ void __launch_bounds__(256, 2) perturb_linear_few_##M##_##DRAWN##_##NAME(                  \
        const T* x, const T* w, T* y, int m, int out, int in, uint64_t first, STREAM, float s) {                      \
        const Perturbed<T, DRAW> weight{w, out, in, first, MAKE_STREAM, s};                                           \
        few<T, M, DRAW>(x, weight, y, m);                                                                             \
    }

PERTURB(float, f32, NORMAL, normal)
PERTURB(float, f32, SIGN, sign)
PERTURB(bf16, bf16, NORMAL, normal)
PERTURB(bf16, bf16, SIGN, sign)
