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
#include "launch.h"
#include "references.cuh"
#include "tile.cuh"

namespace hsb::cuda::prefill::sm90 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What attend_tile() takes.
template <class T_, int HeadDim, int Pair>
struct Parts {
    using T = T_;
    using Cut = CutFor<Pair>;
    using Shared = SharedMemory<Cut, HeadDim>;
    using Arguments = sm90::Arguments;
    using Pages = Pages16;
    using Consumer = sm90::Consumer<T, HeadDim, Pair>;
    static constexpr int kHeadDim = HeadDim;
    static constexpr int kReleases = kGroupThreads;  // arrivals of a group that release a stage
};

#endif

// Only sm_90a's own machine code has a body: the launcher asks for nothing else.
template <class T, int HeadDim, int Pair>
__global__ void __launch_bounds__(CutFor<Pair>::kThreads, 1) prefill_sm90_kernel(const __grid_constant__ Arguments a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kSwizzleAlign) unsigned char shared[];
    attend_tile<Parts<T, HeadDim, Pair>>(a, reinterpret_cast<SharedMemory<CutFor<Pair>, HeadDim> *>(shared));
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
