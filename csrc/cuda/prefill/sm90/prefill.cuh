// Prefill attention over pages, dense and 2:4 in any mix, on the warpgroup tensor cores of sm_90a.
//
//   per page and warpgroup     K page:  S^T [64 tokens x queries] = K Q^T       sums in registers
//                              softmax: P^T = 2^(S^T - reference)               to shared memory (softmax.cuh)
//                              V page:  O^T [head_dim x queries] += V^T P^T     sums in registers
//
// Sparse matrices must be operand A, hence the transposes; P^T is operand B and has to lie in shared memory.
// plan.h draws how the work is cut, consumer.cuh how it is ordered.
#pragma once

#include "cuda/ptx/registers.cuh"
#include "consumer.cuh"
#include "references.cuh"

namespace hsb::cuda::sm90 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class T, int HeadDim, int Pair>
__device__ __forceinline__ void prefill(const Arguments &a, unsigned char *shared) {
    using Cut = CutFor<Pair>;
    using Layout = sm90::Layout<Cut, HeadDim>;
    const std::uint32_t base = ptx::shared_address(shared);
    const int tiles_of_kv_head = a.tiles * a.group;
    const int kv_head = blockIdx.x / tiles_of_kv_head, within_kv_head = blockIdx.x % tiles_of_kv_head;
    const int head = kv_head * a.group + within_kv_head % a.group, tile = a.tiles - 1 - within_kv_head / a.group;
    const int first_page = kv_head * a.blocks(), pages = a.pages_of<Cut>(tile);

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < a.ring.stages; ++stage) {
            ptx::mbarrier_init(base + Layout::kKeyFull + stage * 8, 1);
            ptx::mbarrier_init(base + Layout::kValueFull + stage * 8, 1);
            ptx::mbarrier_init(base + Layout::kKeyEmpty + stage * 8, Cut::kGroups * kGroupThreads);
            ptx::mbarrier_init(base + Layout::kValueEmpty + stage * 8, Cut::kGroups * kGroupThreads);
        }
        ptx::fence_mbarrier_init();
    }
    for (int at = Layout::kCounts + threadIdx.x * 4; at < Layout::kQuery; at += Cut::kThreads * 4)
        ptx::store_shared_u32(base + at, 0);
    __syncthreads();
    count_kinds<Cut::kThreads>(a, first_page, pages, reinterpret_cast<int *>(shared + Layout::kCounts));
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
    extern __shared__ __align__(1024) unsigned char shared[];
    prefill<T, HeadDim, Pair>(a, shared);
#else
    __trap();
#endif
}

}  // namespace hsb::cuda::sm90
