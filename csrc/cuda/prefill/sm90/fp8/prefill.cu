#include "cuda/dispatch.h"
#include "cuda/prefill/prefill.h"
#include "cuda/score_scale.h"
#include "launch.h"
#include "narrow.h"

namespace hsb::cuda::prefill {
namespace {

// The kernel for pairs of a kind that is known only now, one of First and on.
template <class T, int HeadDim, int First = 0>
void launch_for(int pair, const hsb_prefill_params &p, const sm90::fp8::Arguments &a, const Device &device) {
    if constexpr (First < sm90::kAnyPair)
        if (pair != First) return launch_for<T, HeadDim, First + 1>(pair, p, a, device);
    if constexpr (First == sm90::kAnyPair || sm90::fp8::has_own_kernel(First))
        sm90::fp8::launch_prefill<T, HeadDim, First>(p, a, device);
}

}  // namespace

void run_prefill_sm90_fp8(const hsb_prefill_params &p, const Device &device) {
    const ScoreScale scale = score_scale(p.scale);
    sm90::fp8::Arguments a{};
    set_tensors(a, p);
    a.q_len = static_cast<std::int32_t>(p.q_len);
    a.seq = static_cast<std::int32_t>(p.seq);
    a.positions = {p.position, static_cast<std::int32_t>(stored_blocks(p, kBlock))};
    a.extents = {p.lengths, p.q_lengths, p.q_heads};
    a.log2_scale = scale.log2;
    a.signed_log2_scale = scale.flip ? -scale.log2 : scale.log2;
    a.key_scale = p.k.scale;
    a.value_scale = p.v.scale;
    unsigned char *room = static_cast<unsigned char *>(p.workspace);
    for (const bool key : {true, false}) {
        const hsb_pages &pages = key ? p.k : p.v;
        if (!pages.wide) continue;
        narrow_wide_pages(pages, key ? HSB_KEY : HSB_VALUE, p.head_dim, room, p.stream);
        (key ? a.k : a.v).pools[NarrowedKind::kKind] = room;
        room += narrowed_bytes(pages, p.head_dim);
    }
    const int key_kind = sm90::fp8::multiplied_as(a.k), value_kind = sm90::fp8::multiplied_as(a.v);
    int pair = sm90::kAnyPair;
    if (key_kind >= 0 && key_kind == value_kind)
        pair = sm90::pair_kind(static_cast<hsb_block_kind>(key_kind), static_cast<hsb_block_kind>(value_kind));
    dispatch(p.dtype, p.head_dim,
             [&](auto type, auto head_dim) { launch_for<decltype(type), head_dim()>(pair, p, a, device); });
}

}  // namespace hsb::cuda::prefill
