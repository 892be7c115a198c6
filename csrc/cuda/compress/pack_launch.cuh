// Launches pack_pages; instantiated once for each hsb_stored, so that they compile at the same time.
#pragma once

#include "cuda/launch.h"
#include "pack.cuh"
#include "plan.h"

namespace hsb::cuda {

template <class Stored>
void pack(const hsb_compress_params &p, const Plan &plan) {
    using Kinds = typename Stored::Kinds;
    const auto pack_operand = [&](auto head_dim, auto operand) {
        constexpr int kParts = kPackParts<head_dim(), operand()>;
        PackArgs args{static_cast<const std::uint16_t *>(p.x),
                      {},
                      p.map,
                      reinterpret_cast<unsigned long long *>(p.non_finite),
                      p.seq,
                      plan.of_head(p),
                      static_cast<std::uint32_t>(plan.heads * plan.blocks * kParts),
                      infinity_bits(p.dtype),
                      plan.needs_losses()};
        set_pools<Kinds>(args.pools, p);
        const auto launch_from = [&](auto source, const auto &fit) {
            using Source = typename decltype(source)::Type;
            launch(pack_pages<head_dim(), operand(), Source, Stored>,
                   static_cast<unsigned>(ceil_div(args.items, kPackWarps)), kPackWarps * 32, 0, p.stream, args, fit);
        };
        if constexpr (!Stored::kHasScale)
            if (!plan.is_fitted) return launch_from(Tag<AsItIs>(), AsItIs::Args{args.infinity});
        with_element(p.dtype, [&](auto type) {
            if constexpr (operand() == kHeadDimValue)
                launch_from(Tag<Fitted<decltype(type), head_dim(), HSB_KEY, false, Stored::kHasScale>>(), fit_of(p));
            else
                with_order<decltype(type), head_dim(), operand(), Stored::kHasScale>(
                    p, [&](auto source) { launch_from(source, fit_of(p)); });
        });
    };
    if (p.value_axis == HSB_AXIS_HEAD_DIM)
        with_head_dim(p.head_dim,
                      [&](auto head_dim) { pack_operand(head_dim, std::integral_constant<int, kHeadDimValue>()); });
    else
        dispatch_shape(p, pack_operand);
}

}  // namespace hsb::cuda
