// How a dense block gets into its page (compress/pack.cuh): as it is, V transposed.
#pragma once

#include "cuda/compress/strip.cuh"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/global.cuh"
#include "dense_page.cuh"

namespace hsb::cuda {

struct DensePack {
    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_key(const KeyStrip<HeadDim> &k, const Source &,
                                                     const typename KeyStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                     uint4 * /*room*/, int /*lane*/) {
        using Strip = KeyStrip<HeadDim>;
#pragma unroll
        for (int i = 0; i < Strip::kLoads; ++i)
            ptx::store_16(page + dense_chunk<KeyPage<HeadDim>>(k.row0 + i * Strip::kRowsApart, k.chunk),
                          Source::row_of(x[i]));
    }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_rows(const RowStrip<HeadDim> &v, const Source &,
                                                      const typename RowStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                      uint4 * /*room*/, int /*lane*/) {
        using Shape = HeadDimValuePage<HeadDim>;
#pragma unroll
        for (int i = 0; i < RowStrip<HeadDim>::kLoads; i += 2) {  // two tokens of a group are a chunk
            const uint4 a = Source::row_of(x[i]), b = Source::row_of(x[i + 1]);
            const int chunk = (v.row0 + i) / 2;
            ptx::store_16(page + dense_chunk<Shape>(v.group(0), chunk), {a.x, a.y, b.x, b.y});
            ptx::store_16(page + dense_chunk<Shape>(v.group(1), chunk), {a.z, a.w, b.z, b.w});
        }
    }

    // Two chunks of each page row.
    static __device__ __forceinline__ int first_token(int run, int which) { return run * 8 + which * 32; }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_value(const ValueRuns &v, const Source &, const ValueRuns::Pairs &x,
                                                       unsigned char *page, uint4 * /*room*/, int /*lane*/) {
        using Shape = ValuePage<HeadDim>;
#pragma unroll
        for (int pair = 0; pair < 4; ++pair)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint4 even, odd;
                const auto two = [&](int t, std::uint32_t &low, std::uint32_t &high) {
                    const std::uint32_t a = x[half * 8 + t][pair], b = x[half * 8 + t + 1][pair];
                    low = ptx::low_halves(a, b);
                    high = ptx::high_halves(a, b);
                };
                two(0, even.x, odd.x);
                two(2, even.y, odd.y);
                two(4, even.z, odd.z);
                two(6, even.w, odd.w);
                ptx::store_16(page + dense_chunk<Shape>(v.row0 + pair * 2, half * 4 + v.run), even);
                ptx::store_16(page + dense_chunk<Shape>(v.row0 + pair * 2 + 1, half * 4 + v.run), odd);
            }
    }
};

}  // namespace hsb::cuda
