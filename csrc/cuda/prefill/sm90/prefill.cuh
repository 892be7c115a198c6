// Prefill attention over pages, dense and 2:4 in any mix, on the warpgroup tensor cores of sm_90a.
//
//   per page and warpgroup     K page:  S^T [64 tokens x queries] = K Q^T       sums in registers
//                              softmax: P^T = 2^(S^T - reference)               to shared memory (softmax.cuh)
//                              V page:  O^T [head_dim x queries] += V^T P^T     sums in registers
//
// Sparse matrices must be operand A, hence the transposes; P^T is operand B and has to lie in shared memory.
// plan.h draws how the work is cut, consumer.cuh how it is ordered.
#pragma once

#include "consumer.cuh"
#include "cuda/launch.h"
#include "cuda/prefill/prefill.h"
#include "cuda/ptx/registers.cuh"
#include "cuda/queries.cuh"
#include "launch.h"
#include "references.cuh"

namespace hsb::cuda::prefill::sm90 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What K's shift took from the scores of a tile's queries, by the warps of the producer's group that stream nothing, so that
// consumers lose neither time nor registers. Few are left here: a thread has the same 8 channels of every query, and
// waits for two queries at once where 32 registers are left, for one where 24 are.
constexpr int kSpareThreads = 3 * 32;
template <class T, class Cut, int HeadDim>
__device__ __forceinline__ void store_taken(const Arguments &a, std::uint32_t base, int kv_head, int head,
                                            int first_row, int thread) {
    using Shared = SharedMemory<Cut, HeadDim>;
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

template <class T, int HeadDim, int Pair>
__device__ __forceinline__ void attend_tile(const Arguments &a, SharedMemory<CutFor<Pair>, HeadDim> *shared) {
    using Cut = CutFor<Pair>;
    using Shared = SharedMemory<Cut, HeadDim>;
    const std::uint32_t base = ptx::shared_address(shared);
    const int tiles_of_kv_head = a.tiles * a.group;
    const int kv_head = blockIdx.x / tiles_of_kv_head, within_kv_head = blockIdx.x % tiles_of_kv_head;
    const int head = kv_head * a.group + within_kv_head % a.group, tile = a.tiles - 1 - within_kv_head / a.group;
    const int first_page = kv_head * a.positions.stored, pages = a.pages_of<Cut>(tile, first_page);
    if (pages == 0) return;  // all that its queries may see is evicted (blind.h)

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < a.ring.stages; ++stage) {
            ptx::mbarrier_init(Shared::key_full_at(base, stage), 1);
            ptx::mbarrier_init(Shared::value_full_at(base, stage), 1);
            ptx::mbarrier_init(Shared::key_empty_at(base, stage), Cut::kGroups * kGroupThreads);
            ptx::mbarrier_init(Shared::value_empty_at(base, stage), Cut::kGroups * kGroupThreads);
        }
        ptx::mbarrier_init(Shared::taken_full_at(base), kSpareThreads);
        ptx::fence_mbarrier_init();
    }
    for (int at = Shared::zero_begin() + threadIdx.x * 4; at < Shared::zero_end(); at += Cut::kThreads * 4)
        ptx::store_shared_u32(base + at, 0);
    __syncthreads();
    count_kinds<Cut::kThreads>(a, first_page, pages, shared->counts);
    __syncthreads();

    // The same in all lanes of a warp, and known to be.
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), group = warp / 4, lane = threadIdx.x % 32;
    if (group == Cut::kGroups) {
        ptx::registers_down_to<Cut::kProducerRegisters>();
        if (warp % 4 == 0)
            Producer<Cut, HeadDim>(a, shared).stream(first_page, pages, lane);
        else if (a.key_shift)
            store_taken<T, Cut, HeadDim>(a, base, kv_head, head, tile * Cut::kTileQueries, (warp % 4 - 1) * 32 + lane);
    } else {
        ptx::registers_up_to<Cut::kConsumerRegisters>();
        const int first_row = tile * Cut::kTileQueries + group * Cut::kGroupQueries;
        Consumer<T, HeadDim, Pair>(a, shared, Group{group, warp % 4}, lane, head, first_row).attend(first_page);
    }
}

#endif

// Only sm_90a's own machine code has a body: the launcher asks for nothing else.
template <class T, int HeadDim, int Pair>
__global__ void __launch_bounds__(CutFor<Pair>::kThreads, 1) prefill_sm90_kernel(const __grid_constant__ Arguments a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kSwizzleAlign) unsigned char shared[];
    attend_tile<T, HeadDim, Pair>(a, reinterpret_cast<SharedMemory<CutFor<Pair>, HeadDim> *>(shared));
#else
    __trap();
#endif
}

template <class T, int HeadDim, int Pair>
void launch_prefill(const hsb_prefill_params &p, Arguments a, const Device &device) {
    using Cut = CutFor<Pair>;
    using Shared = SharedMemory<Cut, HeadDim>;
    a.ring =
        choose_ring<Shared>(largest_page_bytes(p.k, HeadDim), largest_page_bytes(p.v, HeadDim), device.shared_bytes);
    HSB_CHECK(a.ring.stages > 0, "two page pairs do not fit into shared memory");
    a.tiles = tiles_per_head(p, Cut::kTileQueries);
    launch(prefill_sm90_kernel<T, HeadDim, Pair>, static_cast<unsigned>(a.tiles * p.batch * p.q_heads), Cut::kThreads,
           Shared::bytes(a.ring), p.stream, a);
}

}  // namespace hsb::cuda::prefill::sm90
