#include "prefill.cuh"

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/score_scale.h"
#include "cuda/prefill/prefill.h"

namespace hsb::cuda {
namespace {

template <class T, int HeadDim, int Kind>
void run(const hsb_prefill_params &p, sm90::Arguments &a, const Device &device) {
    using Cut = sm90::CutFor<Kind>;
    using Layout = sm90::Layout<Cut, HeadDim>;
    a.ring = sm90::choose_ring<Layout>(largest_page_bytes(p.k, HeadDim), largest_page_bytes(p.v, HeadDim),
                                       device.shared_bytes);
    HSB_CHECK(a.ring.stages > 0, "two page pairs do not fit into shared memory");
    a.tiles = tiles_per_head(p, Cut::kTileQueries);
    launch(sm90::prefill_sm90_kernel<T, HeadDim, Kind>, static_cast<unsigned>(a.tiles * p.batch * p.q_heads),
           Cut::kThreads, Layout::bytes(a.ring), p.stream, a);
}

template <class T, int HeadDim>
void run(int kind, const hsb_prefill_params &p, sm90::Arguments &a, const Device &device) {
    switch (kind) {
    case 0: return run<T, HeadDim, 0>(p, a, device);
    case 1: return run<T, HeadDim, 1>(p, a, device);
    case 2: return run<T, HeadDim, 2>(p, a, device);
    case 3: return run<T, HeadDim, 3>(p, a, device);
    default: return run<T, HeadDim, sm90::kAnyKind>(p, a, device);
    }
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
    const int kind = a.has_one_kind() ? (a.k.dense ? 0 : 1) | (a.v.dense ? 0 : 2) : sm90::kAnyKind;
    dispatch(p.dtype, p.head_dim,
             [&](auto type, auto head_dim) { run<decltype(type), head_dim()>(kind, p, a, device); });
}

}  // namespace hsb::cuda
