#include "norms.cuh"

#include "api.h"
#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "element.h"

namespace hsb::cuda {
namespace {

void find_norms(const hsb_token_norms_params &p) {
    HSB_CHECK(p.batch > 0 && p.kv_heads > 0 && p.seq > 0, "batch, kv_heads and seq must be positive");
    HSB_CHECK(p.head_dim == 64 || p.head_dim == 128, "head_dim must be 64 or 128");
    HSB_CHECK(is_element(p.dtype), "dtype must be " + element_names());
    HSB_CHECK(p.x && p.squares && p.largest, "x, squares and largest are required");
    current_device();
    dispatch(p.dtype, p.head_dim, [&](auto type, auto head_dim) {
        const std::int64_t runs = ceil_div(p.seq, kNormTokens<head_dim()>);
        const std::int64_t items = runs * p.batch * p.kv_heads;
        HSB_CHECK(items <= UINT32_MAX, "too many tokens: cut the batch");
        const NormArgs args{static_cast<const std::uint16_t *>(p.x), p.squares,
                            static_cast<std::uint16_t *>(p.largest), p.seq,
                            static_cast<std::uint32_t>(runs),        static_cast<std::uint32_t>(items)};
        launch(find_token_norms<decltype(type), head_dim()>, static_cast<unsigned>(ceil_div(items, kNormWarps)),
               kNormWarps * 32, 0, p.stream, args, FitArgs{p.shift, nullptr, 0.0f, nullptr});
    });
}

}  // namespace
}  // namespace hsb::cuda

extern "C" int hsb_cuda_token_norms(const hsb_token_norms_params *p) {
    return hsb::guarded([&] { hsb::cuda::find_norms(*p); });
}
