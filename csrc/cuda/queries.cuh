// Queries as the kernels with mma take them: B fragments (ptx/mma.cuh), in registers.
#pragma once

#include <cstdint>

#include "cuda/page.cuh"

namespace hsb::cuda {

// Q^T of a warp's queries, from global memory: B fragments per step of 32 dims. Queries beyond `valid` are zero.
template <class T, int HeadDim, int Tiles>
__device__ __forceinline__ void load_queries(std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4], const T *from,
                                             std::int32_t valid, std::uint32_t flip, int lane) {
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
        const int query = tile * 8 + lane / 4;
#pragma unroll
        for (int step = 0; step < HeadDim / kStepCols; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const T *pair = from + query * HeadDim + step * kStepCols + i * 8 + lane % 4 * 2;
                q[tile][step][i] = query < valid ? __ldg(reinterpret_cast<const std::uint32_t *>(pair)) ^ flip : 0u;
            }
    }
}

}  // namespace hsb::cuda
