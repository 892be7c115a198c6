#include "combine.cuh"

#include "aligned.h"
#include "api.h"
#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/page.cuh"
#include "element.h"

namespace hsb::cuda {
namespace {

void combine(const hsb_combine_params &p) {
    HSB_CHECK(p.rows > 0 && p.parts > 0, "rows and parts must be positive");
    HSB_CHECK(p.head_dim == 64 || p.head_dim == 128, "head_dim must be 64 or 128");
    HSB_CHECK(is_element(p.dtype), "dtype must be " + element_names());
    HSB_CHECK(p.outs && p.lses && p.out && p.lse, "outs, lses, out and lse are required");
    HSB_CHECK(p.part_bytes >= 0 && p.part_bytes % 4 == 0, "part_bytes must be a multiple of 4");
    HSB_CHECK(is_aligned(p.outs, 4) && is_aligned(p.out, 4), "outs and out must be 4-byte aligned");
    const std::int64_t ctas = ceil_div(p.rows, kCombineWarps);
    HSB_CHECK(ctas <= INT32_MAX, "too many queries: cut the batch");
    current_device();
    const CombineArgs args{static_cast<const unsigned char *>(p.outs),
                           reinterpret_cast<const unsigned char *>(p.lses),
                           static_cast<std::uint32_t *>(p.out),
                           p.lse,
                           p.rows,
                           p.part_bytes,
                           p.parts};
    dispatch(p.dtype, p.head_dim, [&](auto type, auto head_dim) {
        launch(combine_parts<decltype(type), head_dim()>, static_cast<unsigned>(ctas), kCombineWarps * 32, 0, p.stream,
               args);
    });
}

}  // namespace
}  // namespace hsb::cuda

extern "C" int hsb_cuda_combine(const hsb_combine_params *p) {
    return hsb::guarded([&] { hsb::cuda::combine(*p); });
}
