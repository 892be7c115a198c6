// A warp's ring of stages, filled by cp.async: all lanes copy 16 bytes at a time, and each page is a group of copies.
// Groups complete in order, K and V alternating, so that "all but the newest 2 * stages - 1 groups are done" is what
// both waits mean; a load of nothing commits an empty group to keep that count.
#pragma once

#include "cuda/decode/plan.h"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/global.cuh"
#include "cuda/ptx/shared.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900

namespace hsb::cuda::decode {

class Ring {
public:
    __device__ Ring(const RingShape &shape, std::uint32_t base, std::uint32_t /*barriers*/, int lane)
        : shape_(shape), base_(base), lane_(lane) {}

    __device__ void open() {}
    __device__ void written() const {}

    __device__ std::uint32_t key_address(int stage) const { return base_ + stage * shape_.stage_bytes(); }
    __device__ std::uint32_t value_address(int stage) const { return key_address(stage) + shape_.key_bytes; }

    // The whole warp calls these, key and value in turn; bytes 0 asks for nothing. What the warp did with the page
    // before is done.
    __device__ void load_key(int stage, const void *page, int bytes) { load(key_address(stage), page, bytes); }
    __device__ void load_value(int stage, const void *page, int bytes) { load(value_address(stage), page, bytes); }

    // Of one lane: asks L2 for a page that stays where it lies.
    static __device__ void prefetch(const void *page, int bytes) {
        constexpr int kLine = 128;
        for (int at = 0; at < bytes; at += kLine) ptx::prefetch_l2(static_cast<const char *>(page) + at);
    }

    // Likewise for such a page, of which a stage gets the address.
    __device__ void refer_key(int stage, const void *page, int bytes) { refer(key_address(stage), page, bytes); }
    __device__ void refer_value(int stage, const void *page, int bytes) { refer(value_address(stage), page, bytes); }

    __device__ void wait_key(int /*stage*/, std::uint32_t /*phase*/) const { wait(); }
    __device__ void wait_value(int /*stage*/, std::uint32_t /*phase*/) const { wait(); }

private:
    __device__ void load(std::uint32_t to, const void *page, int bytes) {
        __syncwarp();
        for (int at = lane_ * 16; at < bytes; at += 32 * 16)
            ptx::cp_async_16(to + at, static_cast<const char *>(page) + at);
        ptx::cp_async_commit();
    }

    __device__ void refer(std::uint32_t to, const void *page, int bytes) {
        __syncwarp();
        if (lane_ == 0 && bytes > 0) ptx::store_shared_u64(to, reinterpret_cast<std::uint64_t>(page));
        ptx::cp_async_commit();
    }

    __device__ void wait() const {
        static_assert(kMaxStages == 4, "one case per number of stages");
        switch (shape_.stages) {
        case 1: ptx::cp_async_wait<1>(); break;
        case 2: ptx::cp_async_wait<3>(); break;
        case 3: ptx::cp_async_wait<5>(); break;
        default: ptx::cp_async_wait<7>(); break;
        }
        __syncwarp();  // other lanes' copies too
    }

    const RingShape &shape_;
    std::uint32_t base_;
    int lane_;
};

}  // namespace hsb::cuda::decode

#endif
