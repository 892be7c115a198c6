#include "bitmap.cuh"

#include "api.h"
#include "cuda/launch.h"
#include "cuda/page.cuh"
#include "element.h"

// First call (values NULL): find_bitmaps, one run of tokens per CTA; scan_runs; shift_offsets by what came before the run.
// Second call: gather_values.
//
// Workspace:  u32 [runs]
namespace hsb::cuda {
namespace {

// What the params mean, checked.
struct Plan {
    std::int64_t tokens, chunks, runs;

    explicit Plan(const hsb_compress_bitmap_params &p)
        : tokens(std::int64_t{p.batch} * p.kv_heads * p.seq), chunks(tokens * (p.head_dim / kChunk)),
          runs(ceil_div(tokens, kRunTokens)) {
        HSB_CHECK(p.batch > 0 && p.kv_heads > 0 && p.seq > 0, "batch, kv_heads and seq must be positive");
        HSB_CHECK(p.head_dim == 64 || p.head_dim == 128, "head_dim must be 64 or 128");
        HSB_CHECK(is_element(p.dtype), "dtype must be fp16 or bf16");
        HSB_CHECK(0 <= p.keep && p.keep <= p.head_dim, "keep must be 0 to head_dim");
        HSB_CHECK(tokens * p.head_dim / kPad <= std::int64_t{UINT32_MAX}, "offsets must fit 32 bits");
    }
};

template <int HeadDim>
void make_bitmaps(const hsb_compress_bitmap_params &p, const Plan &plan, const BitmapArgs &args) {
    launch(find_bitmaps<HeadDim>, static_cast<unsigned>(plan.runs), kRunTokens, kRunTokens * HeadDim * 2, p.stream,
           args);
    launch(scan_runs, 1, kScanThreads, 0, p.stream, args);
    launch(shift_offsets<HeadDim>, static_cast<unsigned>(ceil_div(plan.chunks, 256)), 256, 0, p.stream, args);
}

}  // namespace
}  // namespace hsb::cuda

extern "C" int64_t hsb_cuda_compress_bitmap_workspace(const hsb_compress_bitmap_params *p) {
    std::int64_t bytes = -1;
    hsb::guarded([&] { bytes = hsb::cuda::Plan(*p).runs * 4; });
    return bytes;
}

extern "C" int hsb_cuda_compress_bitmap(const hsb_compress_bitmap_params *p) {
    using namespace hsb::cuda;
    return hsb::guarded([&] {
        const Plan plan(*p);
        HSB_CHECK(p->x && p->bitmap && p->offset && p->total && p->non_finite,
                  "x, bitmap, offset, total and non_finite are required");
        HSB_CHECK(p->workspace || p->values, "workspace is required in the first call");
        current_device();
        HSB_CUDA(cudaMemsetAsync(p->non_finite, 0xff, sizeof *p->non_finite, static_cast<cudaStream_t>(p->stream)));
        const BitmapArgs args{static_cast<const std::uint16_t *>(p->x),
                              reinterpret_cast<std::uint32_t *>(p->bitmap),
                              p->offset,
                              static_cast<std::uint16_t *>(p->values),
                              static_cast<std::uint32_t *>(p->workspace),
                              reinterpret_cast<long long *>(p->total),
                              reinterpret_cast<unsigned long long *>(p->non_finite),
                              plan.tokens,
                              static_cast<std::uint32_t>(plan.runs),
                              p->keep,
                              hsb::infinity_bits(p->dtype)};
        if (p->values)
            launch(gather_values, static_cast<unsigned>(ceil_div(plan.chunks, 32 * kGatherWarps)), kGatherWarps * 32, 0,
                   p->stream, args, plan.chunks);
        else if (p->head_dim == 64)
            make_bitmaps<64>(*p, plan, args);
        else
            make_bitmaps<128>(*p, plan, args);
    });
}
