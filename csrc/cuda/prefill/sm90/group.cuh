// The threads of a consumer warpgroup, and what they do together.
#pragma once

#include "cuda/ptx/named_barrier.cuh"
#include "cuda/ptx/place.cuh"
#include "cuda/ptx/shared.cuh"
#include "named_barriers.h"
#include "softmax.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::prefill::sm90 {

struct Group {
    int index;  // of the CTA's
    int warp;   // this thread's, of the group

    __device__ __forceinline__ void sync() const { ptx::barrier_sync(kFirstConsumerBarrier + index, kGroupThreads); }

    // Syncs; whether any thread says so.
    __device__ __forceinline__ bool any(bool mine) const {
        return ptx::barrier_or(kFirstConsumerBarrier + index, kGroupThreads, mine);
    }

    // Items 0 .. All - 1, dealt to the threads: calls f(n, item) for this one's, which are share(All) at most.
    static constexpr __host__ __device__ int share(int all) { return (all + kGroupThreads - 1) / kGroupThreads; }
    template <int All, class F>
    static __device__ __forceinline__ void deal(F f) {
#pragma unroll
        for (int n = 0; n < share(All); ++n) {
            const int item = n * kGroupThreads + threadIdx.x % kGroupThreads;
            if (All % kGroupThreads == 0 || item < All) f(n, item);
        }
    }

    // Combines the values of columns `begin` and on (softmax.cuh) over all tokens: over the threads of a column,
    // which all get the result. `through`: f32 [warps][Queries] in shared memory.
    template <int Queries, int Columns, class Combine>
    __device__ __forceinline__ void over_tokens(float (&x)[Columns], int begin, std::uint32_t through,
                                                Combine combine) const {
        constexpr int kWarp = Queries * 4, kPair = 8 * 4;  // bytes from one to the next
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2)
#pragma unroll
            for (int c = 0; c < Columns; ++c) x[c] = combine(x[c], __shfl_xor_sync(~0u, x[c], lanes));
        const int lane = ptx::lane();
        const std::uint32_t first = through + query_of(begin, lane) * 4;
        if (lane < 4)
#pragma unroll
            for (int c = 0; c < Columns; c += 2)
                ptx::store_shared_f32x2(first + warp * kWarp + c / 2 * kPair, x[c], x[c + 1]);
        sync();
#pragma unroll
        for (int c = 0; c < Columns; c += 2) {
            float2 all = ptx::load_shared_f32x2(first + c / 2 * kPair);
#pragma unroll
            for (int w = 1; w < 4; ++w) {
                const float2 other = ptx::load_shared_f32x2(first + w * kWarp + c / 2 * kPair);
                all = make_float2(combine(all.x, other.x), combine(all.y, other.y));
            }
            x[c] = all.x, x[c + 1] = all.y;
        }
    }
};

}  // namespace hsb::cuda::prefill::sm90

#endif
