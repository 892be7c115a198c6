// How a block gets into its 2:4 page of e4m3 (compress/pack.cuh): pruned, then in units of its scales, V transposed. Shared
// memory turns the metadata round.
//
// Lanes store what they have, 4 bytes of a row of K or 8 of one of V: those of a row stand side by side, so that a warp writes
// whole sectors all the same.
#pragma once

#include <type_traits>

#include "cuda/compress/prune.cuh"
#include "cuda/compress/strip.cuh"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/global.cuh"
#include "fp8_pack.cuh"
#include "fp8_page.cuh"

namespace hsb::cuda {

struct Fp8Sparse24Pack {
    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_key(const KeyStrip<HeadDim> &k, const Source &source,
                                                     const typename KeyStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                     uint4 *metadata, int lane) {
        using Element = Element<typename Source::Type>;
        using Strip = KeyStrip<HeadDim>;
        using Shape = KeyPage<HeadDim>;
        using Rows = Fp8KeyRows<HeadDim, kFp8SparseRowBytes<Shape>>;
        const int first = Rows::first(k, k.chunk / 4) + k.chunk % 4 * 4;
        auto *codes = reinterpret_cast<std::uint8_t *>(metadata) + k.chunk / 8 * 128 +
                      fp8_metadata_byte(Rows::first_row(k) % kStripRows, k.chunk % 8 * 2);
        source.with_choice([&](auto choice) {
#pragma unroll
            for (int i = 0; i < Strip::kLoads; ++i) {
                const Pruned pruned = source.template keep_scaled_chunk<decltype(choice), 0, 4>(choice, x[i]);
                const std::uint32_t kept = Element::e4m3(pruned.kept[0], pruned.kept[1]);
                ptx::store_4(page + Rows::below(first, i), ptx::permute_bytes<0x3120>(kept, 0));
                codes[i * Rows::kApart * 16] = static_cast<std::uint8_t>(pruned.codes | pruned.codes >> 16);
            }
        });
        __syncwarp();
        if (lane < Shape::kPairs * 8)
            ptx::store_16(page + fp8_metadata_word<Shape>(k.strip, 0, 0) + lane * 16, metadata[lane]);
    }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_rows(const RowStrip<HeadDim> &v, const Source &source,
                                                      const typename RowStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                      uint4 *metadata, int lane) {
        using Element = Element<typename Source::Type>;
        using Shape = HeadDimValuePage<HeadDim>;
        constexpr int kRowBytes = kFp8SparseRowBytes<Shape>;
        source.with_choice([&](auto choice) {
#pragma unroll
            for (int i = 0; i < RowStrip<HeadDim>::kLoads; i += 4) {  // four tokens of a group are half a chunk
                std::uint32_t kept[4], codes = 0;                     // of both groups
#pragma unroll
                for (int t = 0; t < 4; ++t) {
                    const Pruned pruned = source.template keep_scaled_chunk<decltype(choice), 0, 0>(choice, x[i + t]);
                    kept[t] = Element::e4m3(pruned.kept[0], pruned.kept[1]);
                    codes |= pruned.codes << 4 * t;
                }
                const int token = v.row0 + i;
                const auto store = [&](int row, std::uint32_t low, std::uint32_t high, std::uint32_t of_row) {
                    ptx::store_8(page + swizzled_chunk<kRowBytes>(row, token / 8) + token % 8 * 2, {low, high});
                    const int at = row / kStripRows * 128 + fp8_metadata_byte(row % kStripRows, token % kStripRows);
                    reinterpret_cast<std::uint16_t *>(metadata)[at / 2] = static_cast<std::uint16_t>(of_row);
                };
                store(v.group(0), ptx::permute_bytes<0x6420>(kept[0], kept[1]),
                      ptx::permute_bytes<0x6420>(kept[2], kept[3]), codes);
                store(v.group(1), ptx::permute_bytes<0x7531>(kept[0], kept[1]),
                      ptx::permute_bytes<0x7531>(kept[2], kept[3]), codes >> 16);
            }
        });
        __syncwarp();
        if (lane < Shape::kStrips * 8)
            ptx::store_16(page + fp8_metadata_word<Shape>(lane / 8, v.strip, 0) + lane % 8 * 16, metadata[lane]);
    }

    // Half a chunk of kept values of each page row.
    static __device__ __forceinline__ int first_token(int run, int which) { return run * 16 + which * 8; }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_value(const ValueRuns &v, const Source &source,
                                                       const ValueRuns::Pairs &x, unsigned char *page, uint4 *metadata,
                                                       int lane) {
        using Element = Element<typename Source::Type>;
        using Shape = ValuePage<HeadDim>;
        static_assert(Shape::kPairs == 1, "a block's cols have one register of metadata a lane");
        constexpr int kRowBytes = kFp8SparseRowBytes<Shape>;
        const int first = swizzled_chunk<kRowBytes>(v.row0, v.run / 2) + v.run % 2 * 8;
        auto *places = reinterpret_cast<std::uint16_t *>(metadata) + v.dims / 2 * 64 +
                       fp8_metadata_byte(v.dims % 2 * 8, v.run * 4) / 2;
        source.with_choice([&](auto choice) {
            const auto weights = source.token_weights(choice, first_token(v.run, 0));
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                std::uint32_t kept[4],
                    codes = 0;  // of a group two channels, of which its first two values and its second
                const auto prune = [&](auto group) {
                    constexpr int g = decltype(group)::value;
                    const std::uint32_t of_group[4] = {x[g * 4][pair], x[g * 4 + 1][pair], x[g * 4 + 2][pair],
                                                       x[g * 4 + 3][pair]};
                    const Pruned pruned = source.template keep_scaled_group<g * 4>(choice, of_group, weights, g, pair);
                    kept[g] = Element::e4m3(pruned.kept[0], pruned.kept[1]);
                    codes |= pruned.codes;
                };
                prune(std::integral_constant<int, 0>());
                prune(std::integral_constant<int, 1>());
                prune(std::integral_constant<int, 2>());
                prune(std::integral_constant<int, 3>());
                ptx::store_8(
                    page + rows_below<kRowBytes>(first, pair * 2),
                    {ptx::permute_bytes<0x6420>(kept[0], kept[1]), ptx::permute_bytes<0x6420>(kept[2], kept[3])});
                ptx::store_8(
                    page + rows_below<kRowBytes>(first, pair * 2 + 1),
                    {ptx::permute_bytes<0x7531>(kept[0], kept[1]), ptx::permute_bytes<0x7531>(kept[2], kept[3])});
                places[pair * 16] = static_cast<std::uint16_t>(codes);  // of rows one apart: 8 places
                places[pair * 16 + 8] = static_cast<std::uint16_t>(codes >> 16);
            }
        });
        __syncwarp();
        ptx::store_16(page + fp8_metadata_word<Shape>(v.part * 4, 0, 0) + lane * 16, metadata[lane]);
    }
};

}  // namespace hsb::cuda
