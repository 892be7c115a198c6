#include <cmath>

#include "api.h"
#include "attention_shape.h"
#include "cuda/dispatch.h"
#include "cuda/runtime.h"
#include "cuda/score_scale.h"
#include "launch.h"

namespace hsb::cuda::decode_bitmap {
namespace {

// Calls run(T, head_dim, tiles of 8 query heads) with all three known at compile time.
template <class Run>
void with_kernel_shape(const hsb_decode_params &p, Run &&run) {
    dispatch(p.dtype, p.head_dim, [&](auto type, auto head_dim) {
        if (p.q_heads / p.kv_heads <= 8)
            run(type, head_dim, std::integral_constant<int, 1>());
        else
            run(type, head_dim, std::integral_constant<int, 2>());
    });
}

// What the params mean, checked.
struct Plan {
    std::int64_t heads, tiles;
    int group, splits;

    explicit Plan(const hsb_decode_params &p) {
        check_attention_shape(p);
        heads = std::int64_t{p.batch} * p.kv_heads;
        group = p.q_heads / p.kv_heads;
        tiles = ceil_div(p.seq, tile_tokens(p.head_dim));
        HSB_CHECK(tiles < std::int64_t{1} << 24 && heads * group < std::int64_t{1} << 22, "too large");
        const Device device = current_device();
        int ctas = 0;  // per multiprocessor
        with_kernel_shape(p, [&](auto type, auto head_dim, auto columns) {
            ctas = ctas_per_multiprocessor<decltype(type), head_dim(), columns()>();
        });
        HSB_CHECK(ctas > 0, "the kernel does not fit this device");
        splits = choose_splits(heads, tiles, ctas * device.multiprocessors);
    }
    std::int64_t workspace_bytes(int head_dim) const { return heads * splits * partial_floats_of(group, head_dim) * 4; }
};

BitmapOperand operand_of(const hsb_bitmaps &b) {
    return {reinterpret_cast<const std::uint32_t *>(b.bitmap), b.offset, static_cast<const unsigned char *>(b.values)};
}

}  // namespace
}  // namespace hsb::cuda::decode_bitmap

extern "C" int64_t hsb_cuda_decode_bitmap_workspace(const hsb_decode_params *p) {
    std::int64_t bytes = -1;
    hsb::guarded([&] { bytes = hsb::cuda::decode_bitmap::Plan(*p).workspace_bytes(p->head_dim); });
    return bytes;
}

extern "C" int hsb_cuda_decode_bitmap(const hsb_decode_params *p) {
    using namespace hsb::cuda::decode_bitmap;
    return hsb::guarded([&] {
        const Plan plan(*p);
        HSB_CHECK(p->q && p->out && p->lse && p->workspace, "q, out, lse and workspace are required");
        HSB_CHECK(p->k_bitmap.bitmap && p->k_bitmap.offset && p->v_bitmap.bitmap && p->v_bitmap.offset,
                  "bitmaps and offsets are required");
        HSB_CHECK(std::isfinite(p->scale), "scale must be finite");
        HSB_CHECK(!p->lengths, "bitmaps do not grow");
        HSB_CHECK(p->key_order == HSB_ORDER_ADJACENT && !p->key_shift && !p->value_shift,
                  "bitmaps are of K and V as they are: no key_order, no shifts");
        const hsb::cuda::ScoreScale scale = hsb::cuda::score_scale(p->scale);
        const Arguments args{operand_of(p->k_bitmap),
                             operand_of(p->v_bitmap),
                             p->q,
                             static_cast<float *>(p->workspace),
                             p->out,
                             p->lse,
                             p->seq,
                             plan.heads * p->seq * (p->head_dim / kChunkElements),
                             static_cast<std::int32_t>(plan.tiles),
                             plan.splits,
                             plan.group,
                             scale.scale,
                             scale.log2,
                             hsb::sum_reserve(p->dtype, p->seq),
                             scale.flip};
        with_kernel_shape(*p, [&](auto type, auto head_dim, auto columns) {
            launch_decode_bitmap<decltype(type), head_dim(), columns()>(args, plan.heads, p->stream);
        });
    });
}
