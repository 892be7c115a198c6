#include "prefill.cuh"

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/score_scale.h"
#include "cuda/prefill/prefill.h"

namespace hsb::cuda {
namespace {

template <class T, int HeadDim, int Pair>
void run(const hsb_prefill_params &p, sm90::Arguments &a, const Device &device) {
    using Cut = sm90::CutFor<Pair>;
    using Layout = sm90::Layout<Cut, HeadDim>;
    a.ring = sm90::choose_ring<Layout>(largest_page_bytes(p.k, HeadDim), largest_page_bytes(p.v, HeadDim),
                                       device.shared_bytes);
    HSB_CHECK(a.ring.stages > 0, "two page pairs do not fit into shared memory");
    a.tiles = tiles_per_head(p, Cut::kTileQueries);
    launch(sm90::prefill_sm90_kernel<T, HeadDim, Pair>, static_cast<unsigned>(a.tiles * p.batch * p.q_heads),
           Cut::kThreads, Layout::bytes(a.ring), p.stream, a);
}

// The kernel for pairs of a kind that is known only now, one of First and on, or any.
template <class T, int HeadDim, int First = 0>
void run_for(int kind, const hsb_prefill_params &p, sm90::Arguments &a, const Device &device) {
    if (First == sm90::kAnyPair || kind == First)
        run<T, HeadDim, First>(p, a, device);
    else if constexpr (First < sm90::kAnyPair)
        run_for<T, HeadDim, First + 1>(kind, p, a, device);
}

}  // namespace

void prefill_sm90(const hsb_prefill_params &p, const Device &device) {
    const ScoreScale scale = score_scale(p.scale);
    sm90::Arguments a{};
    set_tensors(a, p);
    a.q_len = static_cast<std::int32_t>(p.q_len);
    a.seq = static_cast<std::int32_t>(p.seq);
    a.log2_scale = scale.log2;
    a.flip = scale.flip;
    const int kind = a.has_one_kind() ? sm90::pair_kind(a.k.one_kind(), a.v.one_kind()) : sm90::kAnyPair;
    dispatch(p.dtype, p.head_dim,
             [&](auto type, auto head_dim) { run_for<decltype(type), head_dim()>(kind, p, a, device); });
}

}  // namespace hsb::cuda
