// The ring of stages of a CTA, filled by the copy engine: one lane starts a page pair's copies, which complete on the
// stage's barrier. A second barrier per stage collects the threads that are done with it, so that a warp may run up to
// stages - 1 pages ahead of another. The warps take turns in asking for pages.
#pragma once

#include <cstddef>

#include "cuda/page_pool.cuh"
#include "cuda/ptx/bulk_copy.cuh"
#include "plan.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace hsb::cuda::prefill::sm80 {

template <int Warps>
class Ring {
public:
    using CopiedPage = StoredPage<const unsigned char>;

    // Warp w asks for pages w, w + Warps, ...
    static constexpr int kLoadStep = Warps;
    __device__ static int first_load() { return threadIdx.x / 32; }

    __device__ Ring(const RingShape &shape, std::uint32_t base) : shape_(shape), base_(base) {}

    // Once, before the first load; all threads call this.
    __device__ void open() {
        if (threadIdx.x == 0) {
#pragma unroll 1
            for (int stage = 0; stage < shape_.stages; ++stage) {
                ptx::mbarrier_init(full(stage), 1);
                ptx::mbarrier_init(empty(stage), Warps * 32);
            }
            ptx::fence_mbarrier_init();
        }
        __syncthreads();
    }

    __device__ std::uint32_t key_address(int stage) const { return base_ + stage * shape_.stage_bytes(); }
    __device__ std::uint32_t value_address(int stage) const { return key_address(stage) + shape_.key_bytes; }

    // The pair that the stage was last asked for is there.
    __device__ void wait_full(int stage, std::uint32_t phase) const { ptx::mbarrier_wait(full(stage), phase); }

    // One warp calls this. Waits until the stage is free.
    __device__ void load(int stage, std::uint32_t phase, const CopiedPage &key, const CopiedPage &value) const {
        if (threadIdx.x % 32 == 0) {
            ptx::mbarrier_wait(empty(stage), phase ^ 1);  // the first time round, that phase is over from the start
            ptx::fence_proxy_async_shared();
            ptx::mbarrier_arrive_expect_tx(full(stage), key.bytes + value.bytes);
            ptx::bulk_copy(key_address(stage), key.at, key.bytes, full(stage));
            ptx::bulk_copy(value_address(stage), value.at, value.bytes, full(stage));
        }
        __syncwarp();
    }
    __device__ void load_nothing() const {}

    // This lane is done with the stage.
    __device__ void release(int stage) const { ptx::mbarrier_arrive(empty(stage)); }

private:
    __device__ std::uint32_t full(int stage) const { return barriers(stage) + offsetof(StageBarriers, full); }
    __device__ std::uint32_t empty(int stage) const { return barriers(stage) + offsetof(StageBarriers, empty); }
    __device__ std::uint32_t barriers(int stage) const { return base_ + shape_.ring_bytes() + stage * kBarrierBytes; }

    const RingShape &shape_;
    std::uint32_t base_;
};

}  // namespace hsb::cuda::prefill::sm80

#endif
