// A CTA's tile: sets up its shared memory, and hands its warps to the producer and the consumers of a kernel.
#pragma once

#include "cuda/ptx/registers.cuh"
#include "cuda/queries.cuh"
#include "group.cuh"
#include "pages.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::prefill::sm90 {

// What K's shift took from the scores of a tile's queries, by the warps of the producer's group that stream nothing, so that
// consumers lose neither time nor registers. Few are left here: a thread has the same 8 channels of every query, and
// waits for two queries at once where 32 registers are left, for one where 24 are.
constexpr int kSpareThreads = 3 * 32;
template <class T, class Cut, class Shared, int HeadDim>
__device__ __forceinline__ void store_taken(const Arguments &a, std::uint32_t base, int kv_head, int head,
                                            int first_row, int thread) {
    constexpr int kChunks = HeadDim / 8, kStride = kSpareThreads / kChunks,
                  kAtOnce = Cut::kProducerRegisters < 32 ? 1 : 2;
    static_assert(Cut::kTileQueries % (kStride * kAtOnce) == 0, "warps stay whole");
    const int chunk = thread % kChunks, last = a.q_len - 1 - first_row;
    const std::int64_t row = static_cast<std::int64_t>(head) * a.q_len + first_row;
    const uint4 *const q = static_cast<const uint4 *>(a.q) + row * kChunks + chunk;
    float4 shift[2];
    load_chunk(shift, a.key_shift + static_cast<std::int64_t>(kv_head) * HeadDim, chunk);
#pragma unroll 1
    for (int query = thread / kChunks; query < Cut::kTileQueries; query += kStride * kAtOnce) {
        uint4 x[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) x[i] = __ldg(q + min(query + i * kStride, last) * kChunks);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            float taken = chunk_times<T>(x[i], shift);
            for (int lanes = 1; lanes < kChunks; lanes *= 2) taken += __shfl_xor_sync(~0u, taken, lanes);
            if (chunk == 0) ptx::store_shared_f32(Shared::taken_at(base, query + i * kStride), taken * a.given_scale);
        }
    }
    ptx::mbarrier_arrive(Shared::taken_full_at(base));
}

// Parts: prefill.cuh's.
template <class Parts>
__device__ __forceinline__ void attend_tile(const typename Parts::Arguments &a, typename Parts::Shared *shared) {
    using Cut = typename Parts::Cut;
    using Shared = typename Parts::Shared;
    constexpr int kHeadDim = Parts::kHeadDim;
    const std::uint32_t base = ptx::shared_address(shared);
    const int tiles_of_kv_head = a.tiles * a.group;
    const int kv_head = blockIdx.x / tiles_of_kv_head, within_kv_head = blockIdx.x % tiles_of_kv_head;
    const int head = kv_head * a.group + within_kv_head % a.group, tile = a.tiles - 1 - within_kv_head / a.group;
    const int first_page = kv_head * a.positions.stored, pages = a.template pages_of<Cut>(head, tile, first_page);
    if (pages == 0) return;  // its queries see nothing, or there are none (blind.h)

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < a.ring.stages; ++stage) {
            ptx::mbarrier_init(Shared::key_full_at(base, stage), 1);
            ptx::mbarrier_init(Shared::value_full_at(base, stage), 1);
            ptx::mbarrier_init(Shared::key_empty_at(base, stage), Cut::kGroups * Parts::kReleases);
            ptx::mbarrier_init(Shared::value_empty_at(base, stage), Cut::kGroups * Parts::kReleases);
        }
        ptx::mbarrier_init(Shared::taken_full_at(base), kSpareThreads);
        ptx::fence_mbarrier_init();
    }
    for (int at = Shared::zero_begin() + threadIdx.x * 4; at < Shared::zero_end(); at += Cut::kThreads * 4)
        ptx::store_shared_u32(base + at, 0);
    __syncthreads();
    count_kinds<Cut::kThreads, typename Parts::Pages>(a, first_page, pages, shared->counts);
    __syncthreads();

    // The same in all lanes of a warp, and known to be.
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), group = warp / 4, lane = threadIdx.x % 32;
    if (group == Cut::kGroups) {
        ptx::registers_down_to<Cut::kProducerRegisters>();
        if (warp % 4 == 0)
            Producer<Shared, kHeadDim, typename Parts::Pages>(a, shared).stream(first_page, pages, lane);
        else if (a.key_shift)
            store_taken<typename Parts::T, Cut, Shared, kHeadDim>(a, base, kv_head, head, tile * Cut::kTileQueries,
                                                                  (warp % 4 - 1) * 32 + lane);
    } else {
        ptx::registers_up_to<Cut::kConsumerRegisters>();
        const int first_row = tile * Cut::kTileQueries + group * Cut::kGroupQueries;
        typename Parts::Consumer(a, shared, Group{group, warp % 4}, lane, head, first_row).attend(first_page);
    }
}

}  // namespace hsb::cuda::prefill::sm90

#endif
