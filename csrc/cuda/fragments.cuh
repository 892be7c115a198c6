// C fragments of S^T and O^T (ptx/mma.cuh), as the attention kernels use them: a thread holds rows i and i + 8 of each
// strip of 16, cols 2t and 2t + 1. Rows are tokens or head dims, cols are queries.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace hsb::cuda {

__device__ __forceinline__ std::uint32_t pack(float low, float high, __half) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const std::uint32_t &>(pair);
}
__device__ __forceinline__ std::uint32_t pack(float low, float high, __nv_bfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const std::uint32_t &>(pair);
}

__device__ __forceinline__ float negative_infinity() { return __int_as_float(0xff800000); }

// Maximum and sum over the lanes that hold the same cols: those with the same lane % 4.
__device__ __forceinline__ float max_over_rows(float x) {
    for (int lanes = 4; lanes < 32; lanes *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
    return x;
}
__device__ __forceinline__ float sum_over_rows(float x) {
    for (int lanes = 4; lanes < 32; lanes *= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

// The output is a mean of rows of V, so it is in range; only the rounding of probabilities can carry it beyond.
// NaN stays NaN.
__device__ __forceinline__ float within(float x, float largest) {
    return x > largest ? largest : x < -largest ? -largest : x;
}
__device__ __forceinline__ float within(float x, __half) { return within(x, 65504.0f); }
__device__ __forceinline__ float within(float x, __nv_bfloat16) { return within(x, 3.38953139e38f); }

}  // namespace hsb::cuda
