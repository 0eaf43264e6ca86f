// What the kernels share: numbers of two types, four at a time, and sums over a warp or a block.
//
// Every kernel exists for f32 and for bf16 storage; arithmetic and sums are f32 in both.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }

// Four neighbouring numbers; the address must be a multiple of four numbers.
__device__ __forceinline__ float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float4 load4(const bf16* p) {
    const uint2 bits = *reinterpret_cast<const uint2*>(p);
    return make_float4(__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u),
                       __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xffff0000u));
}
__device__ __forceinline__ void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }
__device__ __forceinline__ void store4(bf16* p, float4 v) {
    *reinterpret_cast<uint2*>(p) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
}

// Whether a pointer may be read four numbers at a time.
template <typename T> __device__ __forceinline__ bool fours(const T* p) {
    return reinterpret_cast<uintptr_t>(p) % (4 * sizeof(T)) == 0;
}

// The sum over the 32 lanes, in every lane, in a fixed order.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

// The sum over a block of WARPS warps, in every thread. `shared` holds WARPS floats and is free again when all are back.
template <int WARPS> __device__ __forceinline__ float block_sum(float x, float* shared) {
    x = warp_sum(x);
    if (WARPS == 1) return x;
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += shared[w];
    __syncthreads();
    return sum;
}
