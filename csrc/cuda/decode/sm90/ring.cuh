// A warp's ring of stages, filled by the copy engine: one lane starts each page's copy, which completes on the stage's
// barrier. K and V of a stage have barriers of their own, so that work on K begins before V has come. There are no
// barriers for the other direction: the warp that reads a stage is the one that refills it.
#pragma once

#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/decode/plan.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace hsb::cuda {

// Pages are read once: they may leave L2 first.
constexpr bool kEvictFirst = true;

class Ring {
public:
    // `base` and `barriers`: this warp's, as shared addresses.
    __device__ Ring(const Stages &stages, std::uint32_t base, std::uint32_t barriers, int lane)
        : stages_(stages), base_(base), barriers_(barriers), lane_(lane) {
        policy_ = kEvictFirst ? ptx::policy_evict_first() : ptx::policy_evict_normal();
    }

    // Once, before the first load.
    __device__ void open() {
        if (lane_ == 0) {
#pragma unroll 1
            for (int i = 0; i < 2 * stages_.stages; ++i) ptx::mbarrier_init(barriers_ + i * 8, 1);
            ptx::fence_mbarrier_init();
        }
        __syncwarp();
    }

    __device__ std::uint32_t key_address(int stage) const { return base_ + stage * stages_.stage_bytes(); }
    __device__ std::uint32_t value_address(int stage) const { return key_address(stage) + stages_.key_bytes; }

    // The whole warp calls these; bytes 0 asks for nothing. What the warp did with the page before is done.
    __device__ void load_key(int stage, const void *page, int bytes) {
        load(key_address(stage), stage * 2, page, bytes);
    }
    __device__ void load_value(int stage, const void *page, int bytes) {
        load(value_address(stage), stage * 2 + 1, page, bytes);
    }

    __device__ void wait_key(int stage, std::uint32_t phase) const {
        ptx::mbarrier_wait(barriers_ + stage * 16, phase);
    }
    __device__ void wait_value(int stage, std::uint32_t phase) const {
        ptx::mbarrier_wait(barriers_ + stage * 16 + 8, phase);
    }

private:
    __device__ void load(std::uint32_t to, int barrier, const void *page, int bytes) {
        __syncwarp();
        if (lane_ == 0 && bytes > 0) {
            ptx::fence_proxy_async_shared();
            ptx::mbarrier_arrive_expect_tx(barriers_ + barrier * 8, bytes);
            ptx::bulk_copy(to, page, bytes, barriers_ + barrier * 8, policy_);
        }
    }

    const Stages &stages_;
    std::uint32_t base_, barriers_;
    int lane_;
    std::uint64_t policy_;
};

}  // namespace hsb::cuda

#endif
