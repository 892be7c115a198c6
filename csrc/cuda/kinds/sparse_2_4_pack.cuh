// How a block gets into its 2:4 page (compress/pack.cuh): pruned, V transposed. Shared memory turns the metadata round.
#pragma once

#include <type_traits>

#include "cuda/compress/prune.cuh"
#include "cuda/compress/strip.cuh"
#include "cuda/ptx/global.cuh"
#include "sparse_2_4_page.cuh"

namespace hsb::cuda {

struct Sparse24Pack {
    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_key(const KeyStrip<HeadDim> &k, const Source &source,
                                                     const typename KeyStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                     uint4 *metadata, int lane) {
        using Strip = KeyStrip<HeadDim>;
        using Shape = KeyPage<HeadDim>;
        // A lane's 8 values leave it 8 bytes, half a chunk. So neighbours share out two loads: the even lane takes both
        // halves of the first, the odd lane both of the second.
        const bool odd = lane & 1;
        source.with_choice([&](auto choice) {
#pragma unroll
            for (int i = 0; i < Strip::kLoads; i += 2) {
                const KeptPairs a = source.keep_chunk(choice, x[i]), b = source.keep_chunk(choice, x[i + 1]);
                const std::uint32_t codes_a = (a.codes | a.codes >> 12) & 0xff;
                const std::uint32_t codes_b = (b.codes | b.codes >> 12) & 0xff;
                const std::uint32_t low = __shfl_xor_sync(~0u, odd ? a.low : b.low, 1);
                const std::uint32_t high = __shfl_xor_sync(~0u, odd ? a.high : b.high, 1);
                const std::uint32_t codes = __shfl_xor_sync(~0u, odd ? codes_a : codes_b, 1);
                const int row = k.row0 + (odd ? i + 1 : i) * Strip::kRowsApart;
                ptx::store_16(page + value_chunk<Shape>(row, k.chunk / 2),
                              odd ? uint4{low, high, b.low, b.high} : uint4{a.low, a.high, low, high});
                // The 16 bits of 4 groups stand together.
                const MetadataPlace place = metadata_place(row % kStripRows, k.chunk / 2 % 4 * 4);
                const int word = k.chunk / 8 * 32 + place.lane;
                reinterpret_cast<std::uint16_t *>(metadata)[word * 2 + place.bit / 16] =
                    static_cast<std::uint16_t>(odd ? codes | codes_b << 8 : codes_a | codes << 8);
            }
        });
        __syncwarp();
        if (lane < Shape::kPairs * 8)
            ptx::store_16(page + metadata_word<Shape>(k.strip, 0, 0) + lane * 16, metadata[lane]);
    }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_rows(const RowStrip<HeadDim> &v, const Source &source,
                                                      const typename RowStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                      uint4 *metadata, int lane) {
        using Shape = HeadDimValuePage<HeadDim>;
        source.with_choice([&](auto choice) {
#pragma unroll
            for (int i = 0; i < RowStrip<HeadDim>::kLoads; i += 4) {  // four tokens of a group are a chunk
                KeptPairs kept[4];
                std::uint32_t codes = 0;  // of both groups
#pragma unroll
                for (int t = 0; t < 4; ++t) {
                    kept[t] = source.keep_chunk(choice, x[i + t]);
                    codes |= kept[t].codes << 4 * t;
                }
                const int token = v.row0 + i;
                ptx::store_16(page + value_chunk<Shape>(v.group(0), token / 4),
                              {kept[0].low, kept[1].low, kept[2].low, kept[3].low});
                ptx::store_16(page + value_chunk<Shape>(v.group(1), token / 4),
                              {kept[0].high, kept[1].high, kept[2].high, kept[3].high});
                auto *const halves = reinterpret_cast<std::uint16_t *>(metadata);
                const auto store_codes = [&](int row, std::uint32_t of_row) {
                    const MetadataPlace place = metadata_place(row % kStripRows, token % kStripRows);
                    halves[(row / kStripRows * 32 + place.lane) * 2 + place.bit / 16] =
                        static_cast<std::uint16_t>(of_row);
                };
                store_codes(v.group(0), codes);
                store_codes(v.group(1), codes >> 16);
            }
        });
        __syncwarp();
        if (lane < Shape::kStrips * 8)
            ptx::store_16(page + metadata_word<Shape>(lane / 8, v.strip, 0) + lane % 8 * 16, metadata[lane]);
    }

    // One chunk of kept values of each page row.
    static __device__ __forceinline__ int first_token(int run, int which) { return run * 16 + which * 8; }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_value(const ValueRuns &v, const Source &source,
                                                       const ValueRuns::Pairs &x, unsigned char *page, uint4 *metadata,
                                                       int lane) {
        using Shape = ValuePage<HeadDim>;
        static_assert(Shape::kPairs == 1, "a block is one pair of steps");
        source.with_choice([&](auto choice) {
            const auto weights = source.token_weights(choice, first_token(v.run, 0));
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                uint4 even, odd;
                std::uint32_t codes = 0;
                const auto prune = [&](auto group, std::uint32_t &low, std::uint32_t &high) {
                    constexpr int g = decltype(group)::value;
                    const std::uint32_t of_group[4] = {x[g * 4][pair], x[g * 4 + 1][pair], x[g * 4 + 2][pair],
                                                       x[g * 4 + 3][pair]};
                    const KeptPairs kept = source.template keep_group<g * 4>(choice, of_group, weights, g);
                    low = kept.low;
                    high = kept.high;
                    codes |= kept.codes;
                };
                prune(std::integral_constant<int, 0>(), even.x, odd.x);
                prune(std::integral_constant<int, 1>(), even.y, odd.y);
                prune(std::integral_constant<int, 2>(), even.z, odd.z);
                prune(std::integral_constant<int, 3>(), even.w, odd.w);
                ptx::store_16(page + value_chunk<Shape>(v.row0 + pair * 2, v.run), even);
                ptx::store_16(page + value_chunk<Shape>(v.row0 + pair * 2 + 1, v.run), odd);
                const int strip = v.dims / 2;
#pragma unroll
                for (int which = 0; which < 2; ++which) {
                    const MetadataPlace place = metadata_place(v.dims % 2 * 8 + pair * 2 + which, v.run * 4);
                    reinterpret_cast<std::uint16_t *>(metadata)[(strip * 32 + place.lane) * 2 + place.bit / 16] =
                        static_cast<std::uint16_t>(which ? codes >> 16 : codes);
                }
            }
        });
        __syncwarp();
        ptx::store_16(page + metadata_word<Shape>(v.part * 4, 0, 0) + lane * 16, metadata[lane]);
    }
};

}  // namespace hsb::cuda
