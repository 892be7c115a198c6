// How a dense block gets into its page of e4m3 (compress/pack.cuh): in units of its scales, V transposed.
#pragma once

#include "cuda/compress/strip.cuh"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/global.cuh"
#include "fp8_pack.cuh"
#include "fp8_page.cuh"

namespace hsb::cuda {

struct Fp8DensePack {
    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_key(const KeyStrip<HeadDim> &k, const Source &source,
                                                     const typename KeyStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                     uint4 * /*room*/, int /*lane*/) {
        using Element = Element<typename Source::Type>;
        using Rows = Fp8KeyRows<HeadDim, kFp8DenseRowBytes<KeyPage<HeadDim>>>;
        const int first = Rows::first(k, k.chunk / 2) + k.chunk % 2 * 8;
#pragma unroll
        for (int i = 0; i < KeyStrip<HeadDim>::kLoads; ++i) {
            std::uint32_t groups[4];  // element i of both
            Source::groups_of(x[i], groups);
            const auto units = [&](int pair) { return source.scaled(groups[pair], pair); };
            const std::uint32_t low = Element::e4m3(units(0), units(1)), high = Element::e4m3(units(2), units(3));
            ptx::store_8(page + Rows::below(first, i),
                         {ptx::permute_bytes<0x6420>(low, high), ptx::permute_bytes<0x7531>(low, high)});
        }
    }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_rows(const RowStrip<HeadDim> &v, const Source &source,
                                                      const typename RowStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                      uint4 * /*room*/, int /*lane*/) {
        using Element = Element<typename Source::Type>;
        using Shape = HeadDimValuePage<HeadDim>;
#pragma unroll
        for (int i = 0; i < RowStrip<HeadDim>::kLoads; i += 4) {  // four tokens of a group are a chunk
            std::uint32_t first[4], second[4];
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                std::uint32_t groups[4];  // element i of both
                Source::groups_of(x[i + t], groups);
                const auto units = [&](int pair) { return source.scaled(groups[pair], pair); };
                const std::uint32_t low = Element::e4m3(units(0), units(1)), high = Element::e4m3(units(2), units(3));
                first[t] = ptx::permute_bytes<0x6420>(low, high);
                second[t] = ptx::permute_bytes<0x7531>(low, high);
            }
            const int chunk = (v.row0 + i) / 4;
            ptx::store_16(page + fp8_dense_chunk<Shape>(v.group(0), chunk), {first[0], first[1], first[2], first[3]});
            ptx::store_16(page + fp8_dense_chunk<Shape>(v.group(1), chunk),
                          {second[0], second[1], second[2], second[3]});
        }
    }

    // One chunk of each page row.
    static __device__ __forceinline__ int first_token(int run, int which) { return run * 16 + which * 8; }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_value(const ValueRuns &v, const Source &source,
                                                       const ValueRuns::Pairs &x, unsigned char *page, uint4 * /*room*/,
                                                       int /*lane*/) {
        using Element = Element<typename Source::Type>;
        constexpr int kRowBytes = kFp8DenseRowBytes<ValuePage<HeadDim>>;
        const int first = swizzled_chunk<kRowBytes>(v.row0, v.run);
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            std::uint32_t even[4], odd[4];
#pragma unroll
            for (int t = 0; t < 16; t += 4) {
                const auto units = [&](int token) { return source.scaled(x[t + token][pair], pair); };
                const std::uint32_t low = Element::e4m3(units(0), units(1)), high = Element::e4m3(units(2), units(3));
                even[t / 4] = ptx::permute_bytes<0x6420>(low, high);
                odd[t / 4] = ptx::permute_bytes<0x7531>(low, high);
            }
            ptx::store_16(page + rows_below<kRowBytes>(first, pair * 2), {even[0], even[1], even[2], even[3]});
            ptx::store_16(page + rows_below<kRowBytes>(first, pair * 2 + 1), {odd[0], odd[1], odd[2], odd[3]});
        }
    }
};

}  // namespace hsb::cuda
