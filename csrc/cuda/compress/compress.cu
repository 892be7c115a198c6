#include "api.h"
#include "choose.cuh"
#include "cuda/launch.h"
#include "cuda/page_pool.cuh"
#include "loss.cuh"
#include "plan.h"

// Up to three kernels on the caller's stream; the first two only where some, but not all, eligible blocks become 2:4.
//
//   find_losses    reads x, one CTA per eligible block         64-bit keys, workspace
//   choose_blocks  one CTA per head                            map
//   pack_pages     reads x again, a few warps per block        pages; the map where there was nothing to choose
//
// Workspace:  key u64 [batch * kv_heads, eligible]
//             limb u64 [batch * kv_heads, eligible, 5], for types whose sums are that wide (bf16)
namespace hsb::cuda {
namespace {

template <class T>
void choose(const hsb_compress_params &p, const Plan &plan) {
    auto *keys = static_cast<unsigned long long *>(p.workspace);
    auto *limbs = kKeyLimbs<T> > 0 ? keys + plan.heads * plan.eligible : nullptr;
    const auto first = static_cast<std::uint32_t>(p.first_eligible),
               eligible = static_cast<std::uint32_t>(plan.eligible);
    const LossArgs loss{static_cast<const std::uint16_t *>(p.x), keys, limbs, p.seq, first, eligible};
    const auto ctas = static_cast<unsigned>(plan.heads * plan.eligible);
    dispatch_groups(p, [&](auto head_dim, auto operand) {
        const auto launch_from = [&](auto source, const auto &fit) {
            launch(find_losses<T, head_dim(), operand(), typename decltype(source)::Type>, ctas, kLossThreads, 0,
                   p.stream, loss, fit);
        };
        if (plan.is_fitted)
            with_order<T, head_dim(), operand()>(p, [&](auto source) { launch_from(source, fit_of(p)); });
        else
            launch_from(Tag<AsItIs>(), AsItIs::Args{infinity_bits(p.dtype)});
    });
    const ChooseArgs args{keys, limbs, p.map, plan.of_head(p), kKeyBits<T>};
    launch(choose_blocks, static_cast<unsigned>(plan.heads), kChooseThreads, 0, p.stream, args);
}

}  // namespace
}  // namespace hsb::cuda

extern "C" int64_t hsb_cuda_compress_workspace(const hsb_compress_params *p) {
    std::int64_t bytes = -1;
    hsb::guarded([&] { bytes = hsb::cuda::Plan(*p).workspace_bytes(p->dtype); });
    return bytes;
}

extern "C" int hsb_cuda_compress(const hsb_compress_params *p) {
    using namespace hsb::cuda;
    return hsb::guarded([&] {
        const Plan plan(*p);
        HSB_CHECK(p->x && p->map && p->non_finite, "x, map and non_finite are required");
        HSB_CHECK(p->dense || plan.sparse + plan.wide == plan.blocks, "dense is required where blocks stay dense");
        HSB_CHECK(p->wide || !plan.wide, "wide is required where blocks stay wide");
        HSB_CHECK(p->sparse || !plan.sparse, "sparse is required where blocks become 2:4");
        HSB_CHECK(p->workspace || !plan.needs_losses(), "workspace is required");
        current_device();
        if (plan.needs_losses()) with_element(p->dtype, [&](auto type) { choose<decltype(type)>(*p, plan); });
        with_stored(p->stored, [&](auto stored) { pack<decltype(stored)>(*p, plan); });
    });
}
