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
#include "launch.h"
#include "references.cuh"

namespace hsb::cuda::prefill::sm90 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class T, int HeadDim, int Pair>
__device__ __forceinline__ void attend_tile(const Arguments &a, SharedMemory<CutFor<Pair>, HeadDim> *shared) {
    using Cut = CutFor<Pair>;
    using Shared = SharedMemory<Cut, HeadDim>;
    const std::uint32_t base = ptx::shared_address(shared);
    const int tiles_of_kv_head = a.tiles * a.group;
    const int kv_head = blockIdx.x / tiles_of_kv_head, within_kv_head = blockIdx.x % tiles_of_kv_head;
    const int head = kv_head * a.group + within_kv_head % a.group, tile = a.tiles - 1 - within_kv_head / a.group;
    const int first_page = kv_head * a.blocks(), pages = a.pages_of<Cut>(tile);

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < a.ring.stages; ++stage) {
            ptx::mbarrier_init(Shared::key_full_at(base, stage), 1);
            ptx::mbarrier_init(Shared::value_full_at(base, stage), 1);
            ptx::mbarrier_init(Shared::key_empty_at(base, stage), Cut::kGroups * kGroupThreads);
            ptx::mbarrier_init(Shared::value_empty_at(base, stage), Cut::kGroups * kGroupThreads);
        }
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
        if (warp % 4 == 0) Producer<Cut, HeadDim>(a, shared).stream(first_page, pages, lane);
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
