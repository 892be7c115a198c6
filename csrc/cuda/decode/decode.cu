#include <cmath>

#include "aligned.h"
#include "api.h"
#include "cuda/dispatch.h"
#include "cuda/page_pool.cuh"
#include "cuda/reserve.cuh"
#include "cuda/runtime.h"
#include "cuda/score_scale.h"
#include "cuda/softmax_margin.h"
#include "launch.h"

namespace hsb::cuda::decode {
namespace {

constexpr std::int64_t kAlign = 64;

Partition partition_of(const hsb_decode_params &p, const Device &device) {
    const auto pages = static_cast<std::int32_t>(ceil_div(p.seq, kBlock) * p.batch * p.kv_heads);
    const int slots = parts_of(p.batch * p.kv_heads, device.multiprocessors);
    return {pages, pages < slots ? pages : slots};
}

std::int64_t counter_bytes(const hsb_decode_params &p) {
    // One a query head, or one a rank of each kv head's clusters.
    const std::int64_t heads = static_cast<std::int64_t>(p.batch) * p.kv_heads;
    const std::int64_t most = p.q_heads / p.kv_heads > kMaxRanks ? p.q_heads / p.kv_heads : kMaxRanks;
    return ceil_div(heads * most * static_cast<std::int64_t>(sizeof(unsigned)), kAlign) * kAlign;
}

std::int64_t workspace_bytes(const hsb_decode_params &p) {
    check_paged_shape(p);
    const std::int64_t partials = partition_of(p, current_device()).parts * 2;
    const std::int64_t floats = partials * partial_floats(p.q_heads / p.kv_heads, p.head_dim);
    return counter_bytes(p) + floats * static_cast<std::int64_t>(sizeof(float));
}

// Checks them, too.
template <class Stored>
PageBytes page_bytes_of(const hsb_pages &pages, int head_dim) {
    check_pages<Stored>(pages, head_dim);
    PageBytes bytes{};
    for_each_kind([&](auto kind) { bytes.of_kind[kind.kKind] = kind.page_bytes(head_dim); }, typename Stored::Kinds());
    return bytes;
}

// run(Stored()) for the elements of both K and V, or run(StoredApart()).
template <class Run>
void with_stored_of_both(const hsb_decode_params &p, Run &&run) {
    if (p.k.stored == p.v.stored)
        with_stored(p.k.stored, [&](auto stored) { run(Tag<decltype(stored)>()); });
    else
        run(Tag<StoredApart>());
}

void run(const hsb_decode_params &p) {
    check_paged_shape(p);
    Arguments a{};
    a.key_stored = p.k.stored;
    a.value_stored = p.v.stored;
    with_stored(p.k.stored, [&](auto key) { a.key_bytes = page_bytes_of<decltype(key)>(p.k, p.head_dim); });
    with_stored(p.v.stored, [&](auto value) {
        using Stored = decltype(value);
        a.value_bytes = page_bytes_of<Stored>(p.v, p.head_dim);
        a.value_margin = Stored::kMargin;
        // Values in units of a channel's scale are fp16's at most: no sum of these nears fp32's largest.
        a.reserve = Stored::kHasScale ? Stored::kReserve : reserve_of(p.dtype, p.seq, kDecodeMargin);
    });
    HSB_CHECK(p.k.value_axis == HSB_AXIS_TOKENS, "K has no value_axis");
    HSB_CHECK(p.v.value_axis == HSB_AXIS_TOKENS || p.v.value_axis == HSB_AXIS_HEAD_DIM,
              "value_axis is not an hsb_axis");
    HSB_CHECK(p.q && p.out && p.lse && p.workspace, "q, out, lse and workspace are required");
    HSB_CHECK(is_aligned(p.workspace, kAlign), "workspace must be 64-byte aligned");
    HSB_CHECK(std::isfinite(p.scale), "scale must be finite");
    check_order_and_shifts(p);
    HSB_CHECK(!p.lengths || (p.k.map && p.v.map), "a cache that grows needs maps");
    const Device device = current_device();

    set_tensors(a, p);
    a.counters = static_cast<unsigned *>(p.workspace);
    a.partials = reinterpret_cast<float *>(static_cast<char *>(p.workspace) + counter_bytes(p));
    a.partition = partition_of(p, device);
    a.blocks = static_cast<std::int32_t>(ceil_div(p.seq, kBlock));
    a.last_valid = static_cast<std::int32_t>(p.seq - (a.blocks - 1) * static_cast<std::int64_t>(kBlock));
    const ScoreScale scale = score_scale(p.scale);
    a.scale = scale.scale;
    a.log2_scale = scale.log2;
    a.margin = kDecodeMargin / scale.log2;
    a.flip = scale.flip;
    a.prefetch = p.k.stored != HSB_STORED_16 || p.v.stored != HSB_STORED_16;
    a.key_scale = p.k.scale;
    a.value_scale = p.v.scale;
    a.lengths = p.lengths;
    a.batch = p.batch;
    a.kv_heads = p.kv_heads;
    with_stored_of_both(p, [&](auto stored) {
        using Stored = typename decltype(stored)::Type;
        const auto launch_along = [&](auto axis) {
            using Axis = typename decltype(axis)::Type;
            dispatch(p.dtype, p.head_dim, [&](auto type, auto head_dim) {
                if (a.group <= 8)
                    launch_decode<decltype(type), head_dim(), 1, Stored, Axis>(p, a, device);
                else
                    launch_decode<decltype(type), head_dim(), 2, Stored, Axis>(p, a, device);
            });
        };
        if (p.v.value_axis == HSB_AXIS_HEAD_DIM)
            launch_along(Tag<AlongHeadDim>());
        else
            launch_along(Tag<AlongTokens>());
    });
}

}  // namespace
}  // namespace hsb::cuda::decode

extern "C" int64_t hsb_cuda_decode_workspace(const hsb_decode_params *p) {
    std::int64_t bytes = -1;
    hsb::guarded([&] { bytes = hsb::cuda::decode::workspace_bytes(*p); });
    return bytes;
}

extern "C" int hsb_cuda_decode(const hsb_decode_params *p) {
    return hsb::guarded([&] { hsb::cuda::decode::run(*p); });
}
