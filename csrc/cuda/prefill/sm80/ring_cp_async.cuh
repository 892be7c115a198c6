// The ring of stages of a CTA, filled by cp.async: all threads copy 16 bytes at a time, and each page pair is one group
// of copies. Groups complete in order, so "all but the newest stages - kMin are done" is what a wait for the oldest
// means; a load of nothing commits an empty group to keep that count.
#pragma once

#include "cuda/page_pool.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "plan.h"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900

namespace hsb::cuda::prefill::sm80 {

template <int Warps>
class Ring {
public:
    using CopiedPage = StoredPage<const unsigned char>;

    // All warps copy a part of every page.
    static constexpr int kLoadStep = 1;
    __device__ static int first_load() { return 0; }

    __device__ Ring(const RingShape &shape, std::uint32_t base) : shape_(shape), base_(base) {}

    __device__ void open() {}

    __device__ std::uint32_t key_address(int stage) const { return base_ + stage * shape_.stage_bytes(); }
    __device__ std::uint32_t value_address(int stage) const { return key_address(stage) + shape_.key_bytes; }

    // The stage's page pair is there, and all warps are done with the one before.
    __device__ void wait_full(int /*stage*/, std::uint32_t /*phase*/) const {
        static_assert(RingShape::kMin == 3 && RingShape::kMax == 4, "one case per number of stages");
        if (shape_.stages == 3)
            ptx::cp_async_wait<0>();
        else
            ptx::cp_async_wait<1>();
        __syncthreads();
    }

    __device__ void load(int stage, std::uint32_t /*phase*/, const CopiedPage &key, const CopiedPage &value) const {
        copy(key_address(stage), key);
        copy(value_address(stage), value);
        ptx::cp_async_commit();
    }
    __device__ void load_nothing() const { ptx::cp_async_commit(); }

    // This warp is done with the stage: the barrier in wait_full says it for all.
    __device__ void release(int /*stage*/) const {}

private:
    __device__ static void copy(std::uint32_t to, const CopiedPage &page) {
        for (int at = threadIdx.x * 16; at < page.bytes; at += Warps * 32 * 16) ptx::cp_async_16(to + at, page.at + at);
    }

    const RingShape &shape_;
    std::uint32_t base_;
};

}  // namespace hsb::cuda::prefill::sm80

#endif
