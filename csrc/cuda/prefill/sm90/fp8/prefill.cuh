// Prefill attention over e4m3 pages, dense and 2:4 in any mix, on the warpgroup tensor cores of sm_90a. As ../prefill.cuh, with
// queries and probabilities in e4m3 too, for products of 8 bits: twice the work of the same bytes.
#pragma once

#include "consumer.cuh"
#include "cuda/launch.h"
#include "cuda/prefill/prefill.h"
#include "cuda/prefill/sm90/tile.cuh"
#include "launch.h"
#include "moved.cuh"
#include "queries.cuh"
#include "references.cuh"

namespace hsb::cuda::prefill::sm90::fp8 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What attend_tile() takes.
template <class T_, int HeadDim, int Pair>
struct Parts {
    using T = T_;
    using Cut = CutFor<Pair>;
    using Shared = SharedMemory<Cut, HeadDim>;
    using Arguments = fp8::Arguments;
    using Pages = PagesOf<Pair>;
    using Consumer = fp8::Consumer<T, HeadDim, Pair>;
    static constexpr int kHeadDim = HeadDim;
    static constexpr int kReleases = 1;  // arrivals of a group that release a stage
};

#endif

// Only sm_90a's own machine code has a body: the launcher asks for nothing else.
template <class T, int HeadDim, int Pair>
__global__ void __launch_bounds__(CutFor<Pair>::kThreads, 1)
    prefill_sm90_fp8_kernel(const __grid_constant__ Arguments a) {
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
    const int moved_bytes = a.positions.stored >= kMovePages / Cut::kGroups ? Cut::kGroups * Shared::kMovedBytes : 0;
    const auto largest = [](const hsb_pages &pages) {
        int bytes = 0;
        const auto look = [&](auto kind) {
            if (kind.pool(pages) && kind.page_bytes(HeadDim) > bytes) bytes = kind.page_bytes(HeadDim);
        };
        for_each_kind(look, Kinds());
        return bytes;
    };
    a.ring = choose_ring<Shared>(largest(p.k), largest(p.v), device.shared_bytes - moved_bytes);
    HSB_CHECK(a.ring.stages > 0, "two page pairs do not fit into shared memory");
    a.moved = moved_bytes > 0 ? Shared::bytes(a.ring) : 0;
    a.tiles = tiles_per_head(p, Cut::kTileQueries);
    launch(prefill_sm90_fp8_kernel<T, HeadDim, Pair>, static_cast<unsigned>(a.tiles * p.batch * p.q_heads),
           Cut::kThreads, Shared::bytes(a.ring) + moved_bytes, p.stream, a);
}

}  // namespace hsb::cuda::prefill::sm90::fp8
