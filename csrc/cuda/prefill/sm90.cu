#include "sm90.cuh"

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/score_scale.h"
#include "prefill.h"

namespace hsb::cuda {
namespace {

template <class T, int HeadDim>
void run(const hsb_prefill_params &p, sm90::Arguments &a, const Device &device) {
    a.layout = sm90::choose_layout(largest_page_bytes(p.k, HeadDim), largest_page_bytes(p.v, HeadDim), HeadDim,
                                   device.shared_bytes);
    HSB_CHECK(a.layout.stages > 0, "two page pairs do not fit into shared memory");
    a.tiles = static_cast<std::int32_t>(ceil_div(p.q_len, sm90::kTileQueries));
    const std::int64_t ctas = static_cast<std::int64_t>(a.tiles) * p.batch * p.q_heads;
    HSB_CHECK(ctas < (std::int64_t{1} << 31), "too many tiles of queries: cut the batch");
    launch(sm90::prefill_sm90_kernel<T, HeadDim>, static_cast<unsigned>(ctas), sm90::kThreads, a.layout.bytes(HeadDim),
           p.stream, a);
}

}  // namespace

void prefill_sm90(const hsb_prefill_params &p, const Device &device) {
    const ScoreScale scale = score_scale(p.scale);
    sm90::Arguments a{};
    a.q = p.q;
    a.out = p.out;
    a.lse = p.lse;
    a.k = pool_of(p.k);
    a.v = pool_of(p.v);
    a.q_len = static_cast<std::int32_t>(p.q_len);
    a.seq = static_cast<std::int32_t>(p.seq);
    a.group = p.q_heads / p.kv_heads;
    a.log2_scale = scale.log2;
    a.flip = scale.flip;
    dispatch(p.dtype, p.head_dim, [&](auto type, auto head_dim) { run<decltype(type), head_dim()>(p, a, device); });
}

}  // namespace hsb::cuda
