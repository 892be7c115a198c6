#include <type_traits>

#include "api.h"
#include "choose.cuh"
#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "element.h"
#include "loss.cuh"
#include "pack.cuh"

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

// What the params mean, in blocks.
struct Plan {
    std::int64_t heads, blocks, eligible, sparse;  // heads of all batches; blocks of one head
    bool is_fitted;                                // whether anything is stored or chosen otherwise than x is

    explicit Plan(const hsb_compress_params &p)
        : heads(std::int64_t{p.batch} * p.kv_heads), blocks(ceil_div(p.seq, kBlock)),
          eligible(p.last_eligible - p.first_eligible), sparse(p.sparse_per_head),
          is_fitted(p.order != HSB_ORDER_ADJACENT || p.shift || p.weights || p.fold != 0.0f) {
        HSB_CHECK(p.batch > 0 && p.kv_heads > 0 && p.seq > 0, "batch, kv_heads and seq must be positive");
        HSB_CHECK(p.head_dim == 64 || p.head_dim == 128, "head_dim must be 64 or 128");
        HSB_CHECK(is_element(p.dtype), "dtype must be fp16 or bf16");
        HSB_CHECK(p.operand == HSB_KEY || p.operand == HSB_VALUE, "operand must be K or V");
        HSB_CHECK(0 <= p.first_eligible && p.first_eligible <= p.last_eligible && p.last_eligible <= p.seq / kBlock,
                  "eligible blocks must be full blocks of the sequence");
        HSB_CHECK(0 <= sparse && sparse <= eligible, "no more blocks can be 2:4 than are eligible");
        HSB_CHECK(p.order == HSB_ORDER_ADJACENT || (p.order == HSB_ORDER_MIRROR && p.operand == HSB_KEY),
                  "order must be an hsb_order, and adjacent for V");
        HSB_CHECK(p.fold == 0.0f || (p.fold > 0.0f && p.fold <= 1.0f && p.operand == HSB_VALUE),
                  "fold must be from 0 to 1, and 0 for K");
        HSB_CHECK(heads * blocks < kMostSlots, "more blocks than a map can name: cut the batch");
    }
    // With none or all to be chosen, there is nothing to compare.
    bool needs_losses() const { return 0 < sparse && sparse < eligible; }
    std::int64_t key_bytes() const { return heads * eligible * 8; }
    std::int64_t workspace_bytes(int dtype) const {
        if (!needs_losses()) return 0;
        return with_element(dtype, [&](auto type) { return key_bytes() * (1 + kKeyLimbs<decltype(type)>); });
    }
};

// Calls run(head_dim, operand) with both as compile-time constants.
template <class Run>
void dispatch_shape(const hsb_compress_params &p, Run &&run) {
    const auto with_operand = [&](auto head_dim) {
        if (p.operand == HSB_KEY)
            run(head_dim, std::integral_constant<int, HSB_KEY>());
        else
            run(head_dim, std::integral_constant<int, HSB_VALUE>());
    };
    with_head_dim(p.head_dim, with_operand);
}

FitArgs fit_of(const hsb_compress_params &p) {
    return {p.shift, static_cast<const std::uint16_t *>(p.weights), p.fold / 2, p.order == HSB_ORDER_MIRROR};
}

template <class T>
void choose(const hsb_compress_params &p, const Plan &plan) {
    auto *keys = static_cast<unsigned long long *>(p.workspace);
    auto *limbs = kKeyLimbs<T> > 0 ? keys + plan.heads * plan.eligible : nullptr;
    const auto first = static_cast<std::uint32_t>(p.first_eligible),
               eligible = static_cast<std::uint32_t>(plan.eligible);
    const LossArgs loss{static_cast<const std::uint16_t *>(p.x), keys, limbs, p.seq, first, eligible};
    const auto ctas = static_cast<unsigned>(plan.heads * plan.eligible);
    dispatch_shape(p, [&](auto head_dim, auto operand) {
        using OfPruner = Fitted<T, head_dim(), operand()>;
        if (plan.is_fitted)
            launch(find_losses<T, head_dim(), operand(), OfPruner>, ctas, kLossThreads, 0, p.stream, loss, fit_of(p));
        else
            launch(find_losses<T, head_dim(), operand(), AsItIs>, ctas, kLossThreads, 0, p.stream, loss,
                   AsItIs::Args());
    });
    const ChooseArgs args{keys,
                          limbs,
                          p.map,
                          static_cast<std::uint32_t>(plan.blocks),
                          first,
                          eligible,
                          static_cast<std::uint32_t>(plan.sparse),
                          kKeyBits<T>};
    launch(choose_blocks, static_cast<unsigned>(plan.heads), kChooseThreads, 0, p.stream, args);
}

template <int HeadDim, int Operand, class Source>
void launch_pack(const PackArgs &args, const typename Source::Args &fit, bool chosen, void *stream) {
    const auto ctas = static_cast<unsigned>(ceil_div(args.items, kPackWarps));
    if (chosen)
        launch(pack_pages<HeadDim, Operand, true, Source>, ctas, kPackWarps * 32, 0, stream, args, fit);
    else
        launch(pack_pages<HeadDim, Operand, false, Source>, ctas, kPackWarps * 32, 0, stream, args, fit);
}

void pack(const hsb_compress_params &p, const Plan &plan) {
    dispatch_shape(p, [&](auto head_dim, auto operand) {
        constexpr int kParts = kPackParts<head_dim(), operand()>;
        const std::int64_t items = plan.heads * plan.blocks * kParts;
        PackArgs args{static_cast<const std::uint16_t *>(p.x),
                      {},
                      p.map,
                      reinterpret_cast<unsigned long long *>(p.non_finite),
                      p.seq,
                      {static_cast<std::uint32_t>(plan.blocks), static_cast<std::uint32_t>(p.first_eligible),
                       static_cast<std::uint32_t>(p.last_eligible), static_cast<std::uint32_t>(plan.sparse)},
                      static_cast<std::uint32_t>(items),
                      infinity_bits(p.dtype)};
        set_pools(args.pools, p);
        if (!plan.is_fitted) {
            launch_pack<head_dim(), operand(), AsItIs>(args, AsItIs::Args(), plan.needs_losses(), p.stream);
        } else {
            with_element(p.dtype, [&](auto type) {
                using OfPruner = Fitted<decltype(type), head_dim(), operand()>;
                launch_pack<head_dim(), operand(), OfPruner>(args, fit_of(p), plan.needs_losses(), p.stream);
            });
        }
    });
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
        HSB_CHECK(p->dense || plan.sparse == plan.blocks, "dense is required where blocks stay dense");
        HSB_CHECK(p->sparse || !plan.sparse, "sparse is required where blocks become 2:4");
        HSB_CHECK(p->workspace || !plan.needs_losses(), "workspace is required");
        current_device();
        // -1, and for the kernels, which look for the least unsigned index, the largest there is.
        HSB_CUDA(cudaMemsetAsync(p->non_finite, 0xff, sizeof *p->non_finite, static_cast<cudaStream_t>(p->stream)));
        if (plan.needs_losses()) with_element(p->dtype, [&](auto type) { choose<decltype(type)>(*p, plan); });
        pack(*p, plan);
    });
}
