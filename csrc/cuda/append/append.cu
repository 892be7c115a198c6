#include "aligned.h"
#include "api.h"
#include "append_shape.h"
#include "cuda/block_kinds.cuh"
#include "cuda/dispatch.h"
#include "cuda/page_pool.cuh"
#include "cuda/runtime.h"
#include "element.h"
#include "launch.h"

// Workspace:  counter u32 [batch]: zero before the first call, and after every call
namespace hsb::cuda::append {
namespace {

void check_shape(const hsb_append_params &p) {
    check_append_shape(p, kBlock);
    HSB_CHECK(p.seq < (1 << 30) && p.tokens < (1 << 30), "seq and tokens must be below 2^30");
}

std::int64_t workspace_bytes(const hsb_append_params &p) {
    check_shape(p);
    return p.batch * static_cast<std::int64_t>(sizeof(unsigned));
}

template <class Stored>
Growing growing_of(const hsb_growing &g, const void *x, std::int64_t *non_finite) {
    check_growing(g);
    HSB_CHECK(x && non_finite, "k, v and non_finite are required");
    HSB_CHECK((0.0 < g.ratio && g.ratio < 1.0) == (g.losses != nullptr), "losses belong to ratios between 0 and 1");
    Growing found{};
    const auto take = [&](auto kind) {
        found.pools[kind.kKind] = static_cast<unsigned char *>(kind.pool(g));
        found.pages[kind.kKind] = kind.pages(g);
    };
    for_each_kind(take, typename Stored::Kinds());
    HSB_CHECK(found.pools[Stored::Open::kKind], "there are no pages for open blocks");
    for (const unsigned char *pool : found.pools) HSB_CHECK(is_aligned(pool, 16), "pools must be 16-byte aligned");
    HSB_CHECK(is_aligned(g.state, 16), "state must be 16-byte aligned");
    HSB_CHECK(is_aligned(g.scale, 16) && is_aligned(g.weights, 16), "scale and weights must be 16-byte aligned");
    found.map = g.map;
    found.free = g.free;
    found.state = g.state;
    found.losses = g.losses;
    found.shift = g.shift;
    found.weights = static_cast<const std::uint16_t *>(g.weights);
    found.scale = g.scale;
    found.x = static_cast<const std::uint16_t *>(x);
    found.non_finite = reinterpret_cast<unsigned long long *>(non_finite);
    found.ratio = g.ratio;
    found.half_fold = g.fold / 2;
    found.mirror = g.order == HSB_ORDER_MIRROR;
    found.along_head_dim = g.value_axis == HSB_AXIS_HEAD_DIM;
    return found;
}

void run(const hsb_append_params &p) {
    check_shape(p);
    HSB_CHECK(p.lengths && p.overflow && p.workspace, "lengths, overflow and workspace are required");
    HSB_CHECK(p.key.order == HSB_ORDER_ADJACENT || p.key.order == HSB_ORDER_MIRROR, "order is not an hsb_order");
    HSB_CHECK(p.key.value_axis == HSB_AXIS_TOKENS && p.value.order == HSB_ORDER_ADJACENT,
              "K has no value_axis, and V no order");
    HSB_CHECK(p.value.value_axis == HSB_AXIS_TOKENS || p.value.value_axis == HSB_AXIS_HEAD_DIM,
              "value_axis is not an hsb_axis");
    HSB_CHECK(p.key.fold == 0.0f && !p.value.weights, "K has no fold, and V no weights");
    HSB_CHECK(p.value.fold == 0.0f || p.value.value_axis == HSB_AXIS_TOKENS, "V along head_dim is not folded");
    current_device();
    Arguments a{};
    a.counts = p.counts;
    a.lengths = p.lengths;
    a.overflow = p.overflow;
    a.arrived = static_cast<unsigned *>(p.workspace);
    a.tokens = p.tokens;
    a.batch = p.batch;
    a.kv_heads = p.kv_heads;
    a.seq = static_cast<std::int32_t>(p.seq);
    a.blocks = static_cast<std::int32_t>(ceil_div(p.seq, kBlock));
    const auto at_most_seq = [&](std::int64_t tokens) {
        return static_cast<std::int32_t>(tokens < p.seq ? tokens : p.seq);
    };
    a.first = static_cast<std::int32_t>(ceil_div(at_most_seq(p.sink), kBlock));
    a.local = at_most_seq(p.local);
    a.chunk = at_most_seq(p.chunk);
    a.infinity = infinity_bits(p.dtype);
    with_stored(p.key.stored,
                [&](auto stored) { a.tensors[HSB_KEY] = growing_of<decltype(stored)>(p.key, p.k, p.non_finite); });
    with_stored(p.value.stored, [&](auto stored) {
        a.tensors[HSB_VALUE] = growing_of<decltype(stored)>(p.value, p.v, p.non_finite + 1);
    });
    const auto append_to = [&](hsb_operand first, int operands) {
        a.operand = first;
        a.operands = operands;
        a.raises = first + operands > HSB_VALUE;
        with_stored(first == HSB_KEY ? p.key.stored : p.value.stored, [&](auto stored) {
            dispatch(p.dtype, p.head_dim, [&](auto type, auto head_dim) {
                launch_append<decltype(type), head_dim(), decltype(stored)>(a, p.stream);
            });
        });
    };
    if (p.key.stored == p.value.stored) {
        append_to(HSB_KEY, 2);
    } else {
        append_to(HSB_KEY, 1);
        append_to(HSB_VALUE, 1);
    }
}

}  // namespace
}  // namespace hsb::cuda::append

extern "C" int64_t hsb_cuda_append_workspace(const hsb_append_params *p) {
    std::int64_t bytes = -1;
    hsb::guarded([&] { bytes = hsb::cuda::append::workspace_bytes(*p); });
    return bytes;
}

extern "C" int hsb_cuda_append(const hsb_append_params *p) {
    return hsb::guarded([&] { hsb::cuda::append::run(*p); });
}
