// How a block gets into its 2:4 page of int4 (compress/pack.cuh): pruned, then quantised, V transposed.
#pragma once

#include <type_traits>

#include "cuda/compress/prune.cuh"
#include "int4_keys_pack.cuh"
#include "int4_rows_pack.cuh"
#include "int4_values_pack.cuh"

namespace hsb::cuda {

struct Int4Sparse24Pack {
    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_key(const KeyStrip<HeadDim> &k, const Source &source,
                                                     const typename KeyStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                     uint4 *room, int lane) {
        using Strip = KeyStrip<HeadDim>;
        Int4Keys<HeadDim, Source> keys(k, source, page, room, lane);
        std::uint32_t kept[Strip::kLoads][2], codes[Strip::kLoads];
        source.with_choice([&](auto choice) {
#pragma unroll
            for (int n = 0; n < Strip::kLoads; ++n) {
                const Pruned pruned = source.prune_chunk(choice, x[n]);
                std::uint32_t of_chunk[4], in_place[4];
                Source::groups_of(x[n], of_chunk);
                pruned.in_place(in_place, of_chunk);
                keys.look_at(in_place);
                kept[n][0] = pruned.kept[0];
                kept[n][1] = pruned.kept[1];
                codes[n] = pruned.codes;
                keys.put_codes(n, codes[n]);
            }
        });
        keys.find_scales();
        const int word = (k.chunk / 8 * KeyPage<HeadDim>::kStrips + k.strip) * 2 + k.chunk / 4 % 2, t = k.chunk % 4;
        keys.template store_words<1>(
            [&](int n, int) {
                return int4_half_word(keys.kept_floors(kept[n][0], codes[n], false),
                                      keys.kept_floors(kept[n][1], codes[n], true), keys.is_below());
            },
            [&](int row, int) { return int4_words<KeyPage<HeadDim>>(word / 4, row * 4 + t) + word % 4 * 4; });
        keys.store_codes();
    }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_rows(const RowStrip<HeadDim> &v, const Source &source,
                                                      const typename RowStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                      uint4 *room, int lane) {
        constexpr int kLoads = RowStrip<HeadDim>::kLoads;
        Int4Rows<HeadDim, Source> rows(v, source, page, room, lane);
        std::uint32_t groups[kLoads][4], codes[kLoads];
        source.with_choice([&](auto choice) {
#pragma unroll
            for (int n = 0; n < kLoads; ++n) {
                const Pruned pruned = source.prune_chunk(choice, x[n]);
                std::uint32_t of_chunk[4];
                Source::groups_of(x[n], of_chunk);
                pruned.in_place(groups[n], of_chunk);
                codes[n] = pruned.codes;
            }
        });
        rows.find_scales(groups);
#pragma unroll
        for (int n = 0; n < kLoads; n += 2) {
            rows.put_codes(n, codes[n], codes[n + 1]);
            std::uint32_t steps[4], a[2], b[2];
            rows.steps(steps, groups[n], n);
            int4_kept(a, steps, codes[n], 0);
            rows.steps(steps, groups[n + 1], n + 1);
            int4_kept(b, steps, codes[n + 1], 0);
            const int token = v.row0 + n, word = rows.pair_strip() * 2 + token % kStripRows / 8;
            rows.store_word(a[0], a[1], b[0], b[1], [&](int row) {
                return int4_words<HeadDimValuePage<HeadDim>>(word / 4, row * 4 + token % 8 / 2) + word % 4 * 4;
            });
        }
        rows.store_codes();
    }

    static __device__ __forceinline__ int first_token(int run, int which) { return run * 16 + which * 8; }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_value(const ValueRuns &v, const Source &source,
                                                       const ValueRuns::Pairs &x, unsigned char *page, uint4 *room,
                                                       int lane) {
        Int4Values<HeadDim, Source> values(v, source, page, room, lane);
        std::uint32_t kept[4][4][2], codes[4];  // [pair of head dims][group][first, last]
        typename Int4Values<HeadDim, Source>::Largest largest = {};
        source.with_choice([&](auto choice) {
            std::uint32_t stays[4][3] = {};  // of the groups, in their 4 bits
            const auto prune = [&](auto group) {
                constexpr int g = decltype(group)::value;
                const auto weights = source.token_weights(choice, first_token(v.run, 0) + g * 4);  // its own alone
#pragma unroll
                for (int pair = 0; pair < 4; ++pair) {
                    const std::uint32_t of_group[4] = {x[g * 4][pair], x[g * 4 + 1][pair], x[g * 4 + 2][pair],
                                                       x[g * 4 + 3][pair]};
                    std::uint32_t spread[4];
                    const Pruned pruned = source.template prune_group<g * 4>(choice, of_group, weights, 0);
                    if constexpr (decltype(choice)::kIsAll)
                        pruned.spread(spread);
                    else
                        pruned.in_place(spread, of_group);
#pragma unroll
                    for (int i = 0; i < 4; ++i) values.take_largest(largest[g * 4 + i], spread[i], pair);
                    kept[pair][g][0] = pruned.kept[0];
                    kept[pair][g][1] = pruned.kept[1];
#pragma unroll
                    for (int i = 0; i < 3; ++i)
                        stays[pair][i] = select(0xf000fu << g * 4, pruned.stays[i], stays[pair][i]);
                }
            };
            prune(std::integral_constant<int, 0>());
            prune(std::integral_constant<int, 1>());
            prune(std::integral_constant<int, 2>());
            prune(std::integral_constant<int, 3>());
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) codes[pair] = codes_of_masks(stays[pair]);
        });
        values.find_scales(
            largest, [&](int t, int pair) { return int4_spread(kept[pair][t / 4], codes[pair], t / 4 * 4, t % 4); });
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) values.put_codes(pair, codes[pair]);
        const int word = values.strip() * 2 + v.run / 2;
        values.template store_words<2>(
            [&](int pair, int two) {
                std::uint32_t of_group[2][2];
#pragma unroll
                for (int later = 0; later < 2; ++later) {
                    const int g = two * 2 + later;
#pragma unroll
                    for (int i = 0; i < 2; ++i)
                        of_group[later][i] = values.kept_floors(kept[pair][g][i], codes[pair], g, i > 0, pair);
                }
                // Both rows' two groups' first ones, then the second ones.
                const std::uint32_t first = ptx::permute_bytes<0x6240>(of_group[0][0], of_group[1][0]);
                const std::uint32_t second = ptx::permute_bytes<0x6240>(of_group[0][1], of_group[1][1]);
                return uint2{int4_half_word(ptx::low_halves(first, second), values.is_below()),
                             int4_half_word(ptx::high_halves(first, second), values.is_below())};
            },
            [&](int row, int two) {
                return int4_words<ValuePage<HeadDim>>(word / 4, row * 4 + v.run % 2 * 2 + two) + word % 4 * 4;
            });
        values.store_codes();
    }
};

}  // namespace hsb::cuda
