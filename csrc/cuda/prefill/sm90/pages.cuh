// The pages of a tile: how many there are of each kind, and the warp that streams them.
#pragma once

#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/shared.cuh"
#include "shared_memory.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::prefill::sm90 {

// A stage of the ring, and the parity of its use.
struct RingPosition {
    int index = 0;
    std::uint32_t parity = 0;
    __device__ __forceinline__ RingPosition next(int stages) const {
        const bool wraps = index + 1 == stages;
        return {wraps ? 0 : index + 1, parity ^ wraps};
    }
};

// The pages that a kernel meets: their kinds, the kind whose products one of them takes, and whether all do the same.
struct Pages16 {
    using Kinds = BlockKinds;
    static __device__ __forceinline__ hsb_block_kind multiplied_as(hsb_block_kind kind) { return kind; }
    static __device__ __forceinline__ bool are_alike(const Arguments &a) { return a.has_one_kind(); }
};

// By the map's entries.
template <class Pages = Pages16>
__device__ __forceinline__ int pair_kind(std::int32_t key, std::int32_t value) {
    return pair_kind(Pages::multiplied_as(kind_of(key)), Pages::multiplied_as(kind_of(value)));
}
// Of page `page`, among all (batch, kv head).
template <class Pages = Pages16>
__device__ __forceinline__ int pair_kind_at(const Arguments &a, int page) {
    using Kinds = typename Pages::Kinds;
    return pair_kind<Pages>(a.k.entry<Kinds>(page), a.v.entry<Kinds>(page));
}

// The whole block counts; the caller has cleared `counts` and syncs afterwards.
template <int Threads, class Pages>
__device__ __forceinline__ void count_kinds(const Arguments &a, int first, int pages, int *counts) {
    if (Pages::are_alike(a)) {
        if (threadIdx.x == 0) counts[pair_kind_at<Pages>(a, first)] = pages;
        return;
    }
    for (int page = threadIdx.x; page < pages; page += Threads)
        atomicAdd(counts + pair_kind_at<Pages>(a, first + page), 1);
}

// Into a ring that `Shared` has.
template <class Shared, int HeadDim, class Pages>
class Producer {
    using Kinds = typename Pages::Kinds;

public:
    __device__ Producer(const Arguments &a, Shared *shared)
        : a_(a), shared_(shared), base_(ptx::shared_address(shared)), policy_(ptx::policy_evict_normal()) {}

    // One warp: all pages, run by run.
    __device__ __forceinline__ void stream(int first, int pages, int lane) {
        const int *const counts = shared_->counts;
        const int begin = pair_kind_at<Pages>(a_, first);
        RingPosition stage;
        for (int i = 0; i < kPairKinds; ++i) {
            const int kind = begin ^ i;
            if (counts[kind] == 0) continue;
            for (int page = 0; page < pages; page += 32) {
                std::int32_t key = 0, value = 0, block = 0;
                bool mine = false;
                if (page + lane < pages) {
                    key = a_.k.entry<Kinds>(first + page + lane);
                    value = a_.v.entry<Kinds>(first + page + lane);
                    block = a_.positions.block(first, page + lane);
                    mine = pair_kind<Pages>(key, value) == kind;
                }
                for (unsigned left = __ballot_sync(~0u, mine); left; left &= left - 1) {
                    const int at = __ffs(left) - 1;
                    const std::int32_t k = __shfl_sync(~0u, key, at), v = __shfl_sync(~0u, value, at);
                    const std::int32_t number = __shfl_sync(~0u, block, at);
                    if (lane == 0) load(stage, number, k, v);
                    stage = stage.next(a_.ring.stages);
                }
            }
        }
    }

private:
    __device__ __forceinline__ void load(RingPosition stage, int block, std::int32_t key, std::int32_t value) {
        ptx::mbarrier_wait(Shared::key_empty_at(base_, stage.index), stage.parity ^ 1);
        shared_->block_at[stage.index] = block;  // goes with the K page
        copy(Shared::key_at(a_.ring, stage.index), a_.k, key, Shared::key_full_at(0, stage.index));
        ptx::mbarrier_wait(Shared::value_empty_at(base_, stage.index), stage.parity ^ 1);
        copy(Shared::value_at(a_.ring, stage.index), a_.v, value, Shared::value_full_at(0, stage.index));
    }

    __device__ __forceinline__ void copy(int to, const PagePool &pool, std::int32_t entry, int full) const {
        const auto page = pool.template page<HeadDim, Kinds>(entry);
        ptx::mbarrier_arrive_expect_tx(base_ + full, page.bytes);
        ptx::bulk_copy(base_ + to, page.at, page.bytes, base_ + full, policy_);
    }

    const Arguments &a_;
    Shared *shared_;
    std::uint32_t base_;
    std::uint64_t policy_;
};

}  // namespace hsb::cuda::prefill::sm90

#endif
