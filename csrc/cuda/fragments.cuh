// C fragments of S^T and O^T (ptx/mma.cuh), as the attention kernels use them: a thread holds rows i and i + 8 of each
// strip of 16, cols 2t and 2t + 1. Rows are tokens or head dims, cols are queries.
#pragma once

#include "cuda/element.cuh"

namespace hsb::cuda {

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
template <class T>
__device__ __forceinline__ float within(float x) {
    constexpr float kLargest = Element<T>::kLargest;
    return x > kLargest ? kLargest : x < -kLargest ? -kLargest : x;
}

}  // namespace hsb::cuda
