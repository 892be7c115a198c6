#include "narrow.h"

#include "cuda/element.cuh"
#include "cuda/launch.h"
#include "cuda/page.cuh"
#include "cuda/ptx/e4m3.cuh"

namespace hsb::cuda::prefill {
namespace {

constexpr int kThreads = 256;

// A CTA is a page. A thread has what one lane has of a 16 x 16 tile of the wide page: of rows i and i + 8 of
// a strip two pairs of neighbours each, 4 columns apart.
template <class Shape>
__global__ void __launch_bounds__(kThreads) narrow_kernel(const uint4 *from, unsigned char *to) {
#if __CUDA_ARCH__ >= 890
    constexpr int kSteps = Shape::kCols / 16, kRowBytes = kFp8DenseRowBytes<Shape>;
    constexpr int kLanes = Shape::kStrips * kSteps * 32;
    const uint4 *const wide = from + static_cast<std::int64_t>(blockIdx.x) * kLanes;
    unsigned char *const page = to + static_cast<std::int64_t>(blockIdx.x) * (Shape::kRows * kRowBytes);
    for (int at = threadIdx.x; at < kLanes; at += kThreads) {
        const int lane = at % 32, step = at / 32 % kSteps, strip = at / 32 / kSteps;
        const int row = strip * kStripRows + lane / 4, col = lane % 4 / 2 * 8 + lane % 2 * 2;
        const uint4 x = __ldg(wide + at);
        const float2 a = Element<OfE4m3>::unpack(x.x), b = Element<OfE4m3>::unpack(x.y);
        const float2 c = Element<OfE4m3>::unpack(x.z), d = Element<OfE4m3>::unpack(x.w);
        const auto store = [&](int below, const float2 &near, const float2 &far) {
            const std::uint32_t four = ptx::e4m3x4_of_fp32(near.x, near.y, far.x, far.y);
            unsigned char *const chunk = page + swizzled_chunk<kRowBytes>(row + below, step) + col;
            *reinterpret_cast<std::uint16_t *>(chunk) = static_cast<std::uint16_t>(four);
            *reinterpret_cast<std::uint16_t *>(chunk + 4) = static_cast<std::uint16_t>(four >> 16);
        };
        store(0, a, c);
        store(8, b, d);
    }
#else
    __trap();  // e4m3 prefill is sm_90a's
#endif
}

template <class Shape>
void narrow(const hsb_pages &pages, void *to, void *stream) {
    launch(narrow_kernel<Shape>, static_cast<unsigned>(pages.wide_pages), kThreads, 0, stream,
           static_cast<const uint4 *>(pages.wide), static_cast<unsigned char *>(to));
}

}  // namespace

void narrow_wide_pages(const hsb_pages &pages, hsb_operand operand, int head_dim, void *to, void *stream) {
    if (head_dim == 64)  // both are 64 x 64
        narrow<KeyPage<64>>(pages, to, stream);
    else if (operand == HSB_KEY)
        narrow<KeyPage<128>>(pages, to, stream);
    else
        narrow<ValuePage<128>>(pages, to, stream);
}

}  // namespace hsb::cuda::prefill
