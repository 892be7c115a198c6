// The pages of a tile: how many there are of each kind, and the warp that streams them.
#pragma once

#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/shared.cuh"
#include "plan.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::sm90 {

// A place in the ring and the parity of its use.
struct Stage {
    int index = 0;
    std::uint32_t parity = 0;
    __device__ __forceinline__ Stage next(int stages) const {
        const bool wraps = index + 1 == stages;
        return {wraps ? 0 : index + 1, parity ^ wraps};
    }
};

// Map entry of a page; `first` is the line's page 0.
__device__ __forceinline__ std::int32_t entry_of(const PagePool &pool, int first, int page) {
    return pool.map ? __ldg(pool.map + first + page) : (first + page) * 2 + (pool.dense ? 0 : 1);
}
__device__ __forceinline__ int kind_of(std::int32_t key, std::int32_t value) {
    return static_cast<int>(is_sparse(key)) | static_cast<int>(is_sparse(value)) << 1;
}
__device__ __forceinline__ int first_kind(const Arguments &a, int first) {
    return kind_of(entry_of(a.k, first, 0), entry_of(a.v, first, 0));
}

// The whole block counts; the caller has cleared `counts` and syncs afterwards.
template <int Threads>
__device__ __forceinline__ void count_kinds(const Arguments &a, int first, int pages, int *counts) {
    if (a.has_one_kind()) {
        if (threadIdx.x == 0) counts[first_kind(a, first)] = pages;
        return;
    }
    for (int page = threadIdx.x; page < pages; page += Threads)
        atomicAdd(counts + kind_of(entry_of(a.k, first, page), entry_of(a.v, first, page)), 1);
}

template <class Cut, int HeadDim>
class Producer {
public:
    __device__ Producer(const Arguments &a, unsigned char *shared)
        : a_(a), shared_(shared), base_(ptx::shared_address(shared)), policy_(ptx::policy_evict_normal()) {}

    // One warp: all pages, run by run.
    __device__ __forceinline__ void stream(int first, int pages, int lane) {
        const int *const counts = reinterpret_cast<const int *>(shared_ + Layout::kCounts);
        const int begin = first_kind(a_, first);
        Stage stage;
        for (int i = 0; i < kKinds; ++i) {
            const int kind = begin ^ i;
            if (counts[kind] == 0) continue;
            for (int page = 0; page < pages; page += 32) {
                std::int32_t key = 0, value = 0;
                bool mine = false;
                if (page + lane < pages) {
                    key = entry_of(a_.k, first, page + lane);
                    value = entry_of(a_.v, first, page + lane);
                    mine = kind_of(key, value) == kind;
                }
                for (unsigned left = __ballot_sync(~0u, mine); left; left &= left - 1) {
                    const int at = __ffs(left) - 1;
                    const std::int32_t k = __shfl_sync(~0u, key, at), v = __shfl_sync(~0u, value, at);
                    if (lane == 0) load(stage, page + at, k, v);
                    stage = stage.next(a_.ring.stages);
                }
            }
        }
    }

private:
    using Layout = sm90::Layout<Cut, HeadDim>;

    __device__ __forceinline__ void load(Stage stage, int page, std::int32_t key, std::int32_t value) {
        ptx::mbarrier_wait(base_ + Layout::kKeyEmpty + stage.index * 8, stage.parity ^ 1);
        reinterpret_cast<int *>(shared_ + Layout::kPageAt)[stage.index] = page;  // goes with the K page
        copy(Layout::key(a_.ring, stage.index), a_.k, key, Layout::kKeyFull + stage.index * 8);
        ptx::mbarrier_wait(base_ + Layout::kValueEmpty + stage.index * 8, stage.parity ^ 1);
        copy(Layout::value(a_.ring, stage.index), a_.v, value, Layout::kValueFull + stage.index * 8);
    }

    __device__ __forceinline__ void copy(int to, const PagePool &pool, std::int32_t entry, int full) const {
        const int bytes = is_sparse(entry) ? sparse_page_bytes(HeadDim) : dense_page_bytes(HeadDim);
        const unsigned char *const from = (is_sparse(entry) ? pool.sparse : pool.dense) + slot_of(entry) * bytes;
        ptx::mbarrier_arrive_expect_tx(base_ + full, bytes);
        ptx::bulk_copy(base_ + to, from, bytes, base_ + full, policy_);
    }

    const Arguments &a_;
    unsigned char *shared_;
    std::uint32_t base_;
    std::uint64_t policy_;
};

}  // namespace hsb::cuda::sm90

#endif
