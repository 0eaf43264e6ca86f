// NF4 blocks as crates/quant-block stores them.
//
//   ŵ[e] = NF4[code(e)] · scale(e / block)      e: place in the weight, flattened row by row
//
// Code 2i is the high half of byte i, code 2i + 1 the low half; a block may cross rows, the last may be short.
// Scales are plain, scale(b) = absmax[b], or doubly quantised, scale(b) = map[codes[b]] · absmax[b / 256] + offset.
// Both give the bits that the CPU's codec gives.
#pragma once

#include "common.cuh"

static __constant__ float NF4_VALUES[16] = {
    -1.0f,         -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f,    0.1609302f,   0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f,
};

// What a launch says of a weight. `codes` is null where scales are plain.
struct Nf4Weight {
    const uint8_t* __restrict__ packed; // ⌈rows·columns / 2⌉ bytes, at a multiple of 8
    const uint8_t* __restrict__ codes;
    const float* __restrict__ absmax;
    const float* __restrict__ map;
    float offset;
    int shift; // log2 of the block
    int rows, columns;
};

// The tables in shared memory: the sixteen values once for each lane, so that no look-up meets another's bank.
struct Nf4Tables {
    float values[16 * 32];
    float map[256];

    __device__ __forceinline__ void fill(const Nf4Weight& w) {
        for (int i = threadIdx.x; i < 512; i += blockDim.x) values[i] = NF4_VALUES[i / 32];
        if (w.codes != nullptr)
            for (int i = threadIdx.x; i < 256; i += blockDim.x) map[i] = w.map[i];
    }
    // Code j of eight in a word.
    __device__ __forceinline__ float value(uint32_t word, int j) const {
        return values[((word >> (j * 4 ^ 4)) & 15u) * 32 + threadIdx.x % 32];
    }
};

// A block's scale before it is put together: nothing here waits for memory.
struct Nf4Scale {
    float absmax;
    uint32_t code;

    __device__ __forceinline__ static Nf4Scale fetch(const Nf4Weight& w, int64_t block) {
        Nf4Scale s;
        s.code = w.codes != nullptr ? uint32_t(__ldg(w.codes + block)) : 0u;
        s.absmax = __ldg(w.absmax + (w.codes != nullptr ? block >> 8 : block));
        return s;
    }
    __device__ __forceinline__ float value(const Nf4Weight& w, const Nf4Tables& t) const {
        return w.codes != nullptr ? __fadd_rn(__fmul_rn(t.map[code], absmax), w.offset) : absmax;
    }
};

// Sixteen neighbours of a row. ALIGNED: columns are a multiple of 16, so the sixteen are 8 bytes of one block.
template <bool ALIGNED> struct Nf4Segment {
    uint2 codes;
    Nf4Scale scale, second; // of the first `split` entries, and of the others
    int split, valid;       // entries from `valid` on lie past the row's end

    __device__ __forceinline__ static Nf4Segment fetch(const Nf4Weight& w, int row, int column) {
        Nf4Segment s;
        s.codes = make_uint2(0u, 0u);
        s.scale = s.second = Nf4Scale{0.0f, 0u};
        s.split = s.valid = 0;
        if (row >= w.rows || column >= w.columns) return s;
        const int64_t at = int64_t(row) * w.columns + column, block = at >> w.shift;
        s.scale = Nf4Scale::fetch(w, block);
        s.split = s.valid = 16;
        if (ALIGNED) {
            s.codes = __ldcs(reinterpret_cast<const uint2*>(w.packed + at / 2));
            return s;
        }
        s.valid = w.columns - column < 16 ? w.columns - column : 16;
        uint32_t words[2] = {0u, 0u};
#pragma unroll 1
        for (int j = 0; j < s.valid; j++) {
            const uint32_t byte = w.packed[(at + j) / 2];
            const uint32_t code = (at + j) % 2 == 0 ? byte >> 4 : byte & 15u;
            words[j / 8] |= code << (j % 8 * 4 ^ 4);
        }
        s.codes = make_uint2(words[0], words[1]);
        const int64_t left = ((block + 1) << w.shift) - at;
        if (left < s.valid) {
            s.split = int(left);
            s.second = Nf4Scale::fetch(w, block + 1);
        }
        return s;
    }

    __device__ __forceinline__ void decode(const Nf4Weight& w, const Nf4Tables& t, float (&out)[16]) const {
        const float first = valid > 0 ? scale.value(w, t) : 0.0f;
        const float other = !ALIGNED && split < valid ? second.value(w, t) : 0.0f;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            const float v = t.value(j < 8 ? codes.x : codes.y, j % 8);
            out[j] = ALIGNED ? v * first : j < valid ? v * (j < split ? first : other) : 0.0f;
        }
    }
};
