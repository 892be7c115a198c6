#include "cuda/dispatch.h"
#include "cuda/prefill/prefill.h"
#include "cuda/reserve.cuh"
#include "cuda/score_scale.h"
#include "cuda/softmax_margin.h"
#include "launch.h"

namespace hsb::cuda::prefill {

void run_prefill_sm80(const hsb_prefill_params &p, const Device &device) {
    const ScoreScale scale = score_scale(p.scale);
    sm80::Arguments a{};
    set_tensors(a, p);
    a.q_len = static_cast<std::int32_t>(p.q_len);
    a.seq = static_cast<std::int32_t>(p.seq);
    a.positions = {p.position, static_cast<std::int32_t>(stored_blocks(p, kBlock))};
    a.extents = {p.lengths, p.q_lengths, p.q_heads};
    a.heads = p.batch * p.q_heads;
    a.scale = scale.log2;
    a.inverse_scale = 1.0f / scale.log2;
    a.reserve = prefill_reserve(p.dtype, p.seq);
    a.margin = kPrefillSm80Margin + a.reserve;
    a.largest = largest_probabilities(p.dtype, a.reserve);
    a.flip = scale.flip;
    dispatch(p.dtype, p.head_dim, [&](auto type, auto head_dim) {
        const auto launch = p.position || p.lengths ? sm80::launch_prefill<decltype(type), head_dim(), true>
                                                    : sm80::launch_prefill<decltype(type), head_dim(), false>;
        launch(p, a, device);
    });
}

}  // namespace hsb::cuda::prefill
