#include "cuda/dispatch.h"
#include "cuda/prefill/prefill.h"
#include "cuda/reserve.cuh"
#include "cuda/score_scale.h"
#include "cuda/softmax_margin.h"
#include "launch.h"

namespace hsb::cuda::prefill {
namespace {

// The kernel for pairs of a kind that is known only now, one of First and on, or any.
template <class T, int HeadDim, int First = 0>
void launch_for(int pair, const hsb_prefill_params &p, const sm90::Arguments &a, const Device &device) {
    if constexpr (First < sm90::kAnyPair)
        if (pair != First) return launch_for<T, HeadDim, First + 1>(pair, p, a, device);
    if constexpr (First == sm90::kAnyPair || sm90::is_pair(First))
        sm90::launch_prefill<T, HeadDim, First>(p, a, device);
}

}  // namespace

void run_prefill_sm90(const hsb_prefill_params &p, const Device &device) {
    const ScoreScale scale = score_scale(p.scale);
    sm90::Arguments a{};
    set_tensors(a, p);
    a.q_len = static_cast<std::int32_t>(p.q_len);
    a.seq = static_cast<std::int32_t>(p.seq);
    a.positions = {p.position, static_cast<std::int32_t>(stored_blocks(p, kBlock))};
    a.extents = {p.lengths, p.q_lengths, p.q_heads};
    a.log2_scale = scale.log2;
    a.reserve = prefill_reserve(p.dtype, p.seq);
    a.margin = kPrefillSm90Margin + a.reserve;
    a.largest = largest_probabilities(p.dtype, a.reserve);
    a.flip = scale.flip;
    const int pair = a.has_one_kind() ? sm90::pair_kind(a.k.one_kind(), a.v.one_kind()) : sm90::kAnyPair;
    dispatch(p.dtype, p.head_dim,
             [&](auto type, auto head_dim) { launch_for<decltype(type), head_dim()>(pair, p, a, device); });
}

}  // namespace hsb::cuda::prefill
