// O^T's sums beside those of the tensor cores: in fp32, in shared memory.
//
// A sum of e4m3 products has 14 bits, and a product is cut to what the sum can show (ptx/wgmma.cuh): about 2^-11 of what has
// been summed so far is lost with every page, all to one side. So sums are moved every kMovePages pages; a thread's own, 16
// bytes at a time.
#pragma once

#include "consumer.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::prefill::sm90::fp8 {

// f(half, i, at) for sums out_[half][i .. i + 3], which move to `at`.
template <class T, int HeadDim, int Pair>
template <class F>
__device__ __forceinline__ void Consumer<T, HeadDim, Pair>::over_moved(F f) const {
    const std::uint32_t first =
        base_ + a_.moved + group_.index * Shared::kMovedBytes + ptx::thread_index() % kGroupThreads * 16;
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
        for (int i = 0; i < kScores; i += 4) f(half, i, first + (half * kScores + i) / 4 * (kGroupThreads * 16));
}

template <class T, int HeadDim, int Pair>
__device__ __forceinline__ void Consumer<T, HeadDim, Pair>::move_sums(bool first) {
    if (first)
        over_moved([&](int half, int i, std::uint32_t at) {
            const float *const o = out_[half] + i;
            ptx::store_shared_f32x4(at, o[0], o[1], o[2], o[3]);
        });
    else
        over_moved([&](int half, int i, std::uint32_t at) {
            const float *const o = out_[half] + i;
            const float4 x = ptx::load_shared_f32x4(at);
            ptx::store_shared_f32x4(at, o[0] + x.x, o[1] + x.y, o[2] + x.z, o[3] + x.w);
        });
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
        for (int i = 0; i < kScores; ++i) out_[half][i] = 0.0f;
}

template <class T, int HeadDim, int Pair>
__device__ __forceinline__ void Consumer<T, HeadDim, Pair>::add_moved() {
    over_moved([&](int half, int i, std::uint32_t at) {
        float *const o = out_[half] + i;
        const float4 x = ptx::load_shared_f32x4(at);
        o[0] += x.x, o[1] += x.y, o[2] += x.z, o[3] += x.w;
    });
}

// `factors`: f32 [queries] in shared memory.
template <class T, int HeadDim, int Pair>
__device__ __forceinline__ void Consumer<T, HeadDim, Pair>::scale_moved(std::uint32_t factors) const {
    over_moved([&](int, int i, std::uint32_t at) {
        const float2 factor = ptx::load_shared_f32x2(factors + query_of(column_of(i), ptx::lane()) * 4);
        const float4 x = ptx::load_shared_f32x4(at);
        ptx::store_shared_f32x4(at, x.x * factor.x, x.y * factor.y, x.z * factor.x, x.w * factor.y);
    });
}

}  // namespace hsb::cuda::prefill::sm90::fp8

#endif
