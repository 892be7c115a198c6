// A warp's ring of stages, filled by the copy engine: one lane starts each page's copy, which completes on the stage's
// barrier. K and V of a stage have barriers of their own, so that work on K begins before V has come. There are no
// barriers for the other direction: the warp that reads a stage is the one that refills it.
#pragma once

#include <cstddef>

#include "cuda/decode/plan.h"
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/shared.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace hsb::cuda::decode {

// Pages are read once: they may leave L2 first.
constexpr bool kEvictFirst = true;

class Ring {
public:
    // `base` and `barriers`: this warp's, as shared addresses.
    __device__ Ring(const RingShape &shape, std::uint32_t base, std::uint32_t barriers, int lane)
        : shape_(shape), base_(base), barriers_(barriers), lane_(lane) {
        policy_ = kEvictFirst ? ptx::policy_evict_first() : ptx::policy_evict_normal();
    }

    // Once, before the first load; and before any other of the warp's, for which its fence would wait.
    __device__ void open() {
        static_assert(2 * kMaxStages <= 32, "a lane for each barrier");
        if (lane_ < 2 * shape_.stages) {
            ptx::mbarrier_init(barriers_ + lane_ * static_cast<int>(sizeof(std::uint64_t)), 1);
            ptx::fence_mbarrier_init();
        }
        __syncwarp();
    }

    __device__ std::uint32_t key_address(int stage) const { return base_ + stage * shape_.stage_bytes(); }
    __device__ std::uint32_t value_address(int stage) const { return key_address(stage) + shape_.key_bytes; }

    // The whole warp calls this where it has itself written to a stage: a copy that it asks for then comes later.
    __device__ void written() const { ptx::fence_proxy_async_shared(); }

    // The whole warp calls these; bytes 0 asks for nothing. What the warp read of the page before has come.
    __device__ void load_key(int stage, const void *page, int bytes) {
        load(key_address(stage), stage, offsetof(StageBarriers, key), page, bytes);
    }
    __device__ void load_value(int stage, const void *page, int bytes) {
        load(value_address(stage), stage, offsetof(StageBarriers, value), page, bytes);
    }

    // Of one lane: asks L2 for a page that stays where it lies.
    static __device__ void prefetch(const void *page, int bytes) { ptx::bulk_prefetch_l2(page, bytes); }

    // Likewise for such a page, of which a stage gets the address.
    __device__ void refer_key(int stage, const void *page, int bytes) {
        refer(key_address(stage), stage, offsetof(StageBarriers, key), page, bytes);
    }
    __device__ void refer_value(int stage, const void *page, int bytes) {
        refer(value_address(stage), stage, offsetof(StageBarriers, value), page, bytes);
    }

    __device__ void wait_key(int stage, std::uint32_t phase) const { ptx::mbarrier_wait(key_barrier(stage), phase); }
    __device__ void wait_value(int stage, std::uint32_t phase) const {
        ptx::mbarrier_wait(value_barrier(stage), phase);
    }

private:
    __device__ std::uint32_t key_barrier(int stage) const {
        return barriers_ + stage * kBarrierBytes + offsetof(StageBarriers, key);
    }
    __device__ std::uint32_t value_barrier(int stage) const {
        return barriers_ + stage * kBarrierBytes + offsetof(StageBarriers, value);
    }

    __device__ void load(std::uint32_t to, int stage, int which, const void *page, int bytes) {
        __syncwarp();
        if (lane_ == 0 && bytes > 0) {
            const std::uint32_t barrier = barriers_ + stage * kBarrierBytes + which;
            ptx::mbarrier_arrive_expect_tx(barrier, bytes);
            ptx::bulk_copy(to, page, bytes, barrier, policy_);
        }
    }

    __device__ void refer(std::uint32_t to, int stage, int which, const void *page, int bytes) {
        __syncwarp();
        if (lane_ == 0 && bytes > 0) {
            ptx::store_shared_u64(to, reinterpret_cast<std::uint64_t>(page));
            ptx::fence_proxy_async_shared();
            ptx::mbarrier_arrive(barriers_ + stage * kBarrierBytes + which);  // after it, all lanes see the address
        }
    }

    const RingShape &shape_;
    std::uint32_t base_, barriers_;
    int lane_;
    std::uint64_t policy_;
};

}  // namespace hsb::cuda::decode

#endif
