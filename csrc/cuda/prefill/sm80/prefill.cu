#include "prefill.cuh"

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/score_scale.h"
#include "cuda/prefill/prefill.h"

namespace hsb::cuda {
namespace {

// 24 queries a warp are as many as registers allow; two CTAs of 4 warps were 5 % faster than one of 8 (H200).
using Tile = QueryTile<3, 4, 2>;

template <class T, int HeadDim>
void run(const hsb_prefill_params &p, PrefillArguments &a, const Device &device) {
    const int key_bytes = largest_page_bytes(p.k, HeadDim), value_bytes = largest_page_bytes(p.v, HeadDim);
    const int room = device.shared_bytes - Tile::kCtas * Tile::kReferenceBytes;
    a.stages = choose_prefill_stages(key_bytes, value_bytes, room, Tile::kCtas);
    if (a.stages.stages < PrefillStages::kMin)
        a.stages = choose_prefill_stages(key_bytes, value_bytes, room, 1);
    HSB_CHECK(a.stages.stages >= PrefillStages::kMin, "three page pairs do not fit into shared memory");
    a.tiles = tiles_per_head(p, Tile::kQueries);
    const int results = Tile::kQueries * HeadDim * 2;
    const int shared_bytes =
        Tile::kReferenceBytes + (a.stages.shared_bytes() > results ? a.stages.shared_bytes() : results);
    launch(prefill_sm80_kernel<T, HeadDim, Tile>, static_cast<unsigned>(a.tiles * a.heads), Tile::kThreads,
           shared_bytes, p.stream, a);
}

}  // namespace

void prefill_sm80(const hsb_prefill_params &p, const Device &device) {
    const ScoreScale scale = score_scale(p.scale);
    PrefillArguments a{};
    set_tensors(a, p);
    a.q_len = static_cast<std::int32_t>(p.q_len);
    a.seq = static_cast<std::int32_t>(p.seq);
    a.heads = p.batch * p.q_heads;
    a.scale = scale.log2;
    a.inverse_scale = 1.0f / scale.log2;
    a.flip = scale.flip;
    dispatch(p.dtype, p.head_dim, [&](auto type, auto head_dim) { run<decltype(type), head_dim()>(p, a, device); });
}

}  // namespace hsb::cuda
