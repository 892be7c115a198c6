// How a wide block gets into its page (compress/pack.cuh): fp16 in units of its scales, V transposed. There are few, so that each
// register of a lane is stored by itself.
#pragma once

#include "cuda/compress/strip.cuh"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/global.cuh"
#include "fp8_page.cuh"

namespace hsb::cuda {

// Where cols 8 `half` + 4 `later` + 2 `odd` and one more of a step lie in a page (wide.cuh): register `later` * 2 + row / 8 of
// lane 4 i + 2 half + odd of its tile.
template <class Shape>
HSB_HOST_DEVICE constexpr int wide_word(int row, int step, int half, int odd, int later) {
    constexpr int kSteps = Shape::kCols / 16;
    const int tile = row / kStripRows * kSteps + step, lane = row % 8 * 4 + half * 2 + odd;
    return (tile * 32 + lane) * kChunkBytes + (later * 2 + row / 8 % 2) * 4;
}

struct WidePack {
    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_key(const KeyStrip<HeadDim> &k, const Source &source,
                                                     const typename KeyStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                     uint4 * /*room*/, int /*lane*/) {
        using Strip = KeyStrip<HeadDim>;
        using Shape = KeyPage<HeadDim>;
#pragma unroll
        for (int i = 0; i < Strip::kLoads; ++i) {
            const int row = fp8_row_of_token(k.row0 + i * Strip::kRowsApart);
            const uint4 cols = Source::row_of(
                uint4{source.wide(x[i].x, 0), source.wide(x[i].y, 1), source.wide(x[i].z, 2), source.wide(x[i].w, 3)});
            const auto store = [&](int odd, int later, std::uint32_t two) {
                ptx::store_4(page + wide_word<Shape>(row, k.chunk / 2, k.chunk % 2, odd, later), two);
            };
            store(0, 0, cols.x);
            store(1, 0, cols.y);
            store(0, 1, cols.z);
            store(1, 1, cols.w);
        }
    }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_rows(const RowStrip<HeadDim> &v, const Source &source,
                                                      const typename RowStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                      uint4 * /*room*/, int /*lane*/) {
        using Shape = HeadDimValuePage<HeadDim>;
#pragma unroll
        for (int i = 0; i < RowStrip<HeadDim>::kLoads; ++i) {
            const int token = v.row0 + i;  // four of them are a step
            const uint4 cols = Source::row_of(
                uint4{source.wide(x[i].x, 0), source.wide(x[i].y, 1), source.wide(x[i].z, 2), source.wide(x[i].w, 3)});
            const auto store = [&](int row, int odd, std::uint32_t two) {
                ptx::store_4(page + wide_word<Shape>(row, token / 4, token % 4 / 2, odd, token % 2), two);
            };
            store(v.group(0), 0, cols.x);
            store(v.group(0), 1, cols.y);
            store(v.group(1), 0, cols.z);
            store(v.group(1), 1, cols.w);
        }
    }

    // One step of each page row.
    static __device__ __forceinline__ int first_token(int run, int which) { return run * 16 + which * 8; }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_value(const ValueRuns &v, const Source &source,
                                                       const ValueRuns::Pairs &x, unsigned char *page, uint4 * /*room*/,
                                                       int /*lane*/) {
        using Shape = ValuePage<HeadDim>;
#pragma unroll
        for (int pair = 0; pair < 4; ++pair)
#pragma unroll
            for (int t = 0; t < 16; t += 2) {
                const std::uint32_t a = source.wide(x[t][pair], pair), b = source.wide(x[t + 1][pair], pair);
                const int row = v.row0 + pair * 2;
                ptx::store_4(page + wide_word<Shape>(row, v.run, t / 8, t / 2 % 2, t / 4 % 2), ptx::low_halves(a, b));
                ptx::store_4(page + wide_word<Shape>(row + 1, v.run, t / 8, t / 2 % 2, t / 4 % 2),
                             ptx::high_halves(a, b));
            }
    }
};

}  // namespace hsb::cuda
