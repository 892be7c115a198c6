// How a dense block gets into its page of int4 (compress/pack.cuh): quantised, V transposed.
#pragma once

#include "int4_keys_pack.cuh"
#include "int4_rows_pack.cuh"
#include "int4_values_pack.cuh"

namespace hsb::cuda {

struct Int4DensePack {
    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_key(const KeyStrip<HeadDim> &k, const Source &source,
                                                     const typename KeyStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                     uint4 *room, int lane) {
        using Strip = KeyStrip<HeadDim>;
        Int4Keys<HeadDim, Source> keys(k, source, page, room, lane);
        std::uint32_t groups[Strip::kLoads][4];
#pragma unroll
        for (int n = 0; n < Strip::kLoads; ++n) {
            Source::groups_of(x[n], groups[n]);
            keys.look_at(groups[n]);
        }
        keys.find_scales();
        typename Int4Keys<HeadDim, Source>::Inverses inverse;
        keys.load_inverses(inverse);
#pragma unroll
        for (int n = 0; n < Strip::kLoads; ++n) {
            std::uint32_t steps[4];
            keys.floors(steps, groups[n], inverse);
#pragma unroll
            for (int i = 0; i < 4; ++i) groups[n][i] = steps[i];
        }
        // Two words of 16 cols: of cols 0, 1, 4, 5 of the chunk, and of the others.
        const int pair = k.chunk / 8, cols16 = k.chunk % 8 / 2, t = k.chunk % 2 * 2;
        keys.template store_words<2>(
            [&](int n, int which) {
                return int4_half_word(groups[n][which * 2], groups[n][which * 2 + 1], keys.is_below());
            },
            [&](int row, int which) {
                return int4_words<KeyPage<HeadDim>>(pair * KeyPage<HeadDim>::kStrips + k.strip, row * 4 + t + which) +
                       cols16 * 4;
            });
    }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_rows(const RowStrip<HeadDim> &v, const Source &source,
                                                      const typename RowStrip<HeadDim>::Chunks &x, unsigned char *page,
                                                      uint4 *room, int lane) {
        constexpr int kLoads = RowStrip<HeadDim>::kLoads;
        Int4Rows<HeadDim, Source> rows(v, source, page, room, lane);
        std::uint32_t groups[kLoads][4];
#pragma unroll
        for (int n = 0; n < kLoads; ++n) Source::groups_of(x[n], groups[n]);
        rows.find_scales(groups);
#pragma unroll
        for (int n = 0; n < kLoads; n += 2) {
            std::uint32_t a[4], b[4];
            rows.steps(a, groups[n], n);
            rows.steps(b, groups[n + 1], n + 1);
            const int token = v.row0 + n;
#pragma unroll
            for (int i = 0; i < 4; i += 2)
                rows.store_word(a[i], a[i + 1], b[i], b[i + 1], [&](int row) {
                    return int4_words<HeadDimValuePage<HeadDim>>(rows.pair_strip(),
                                                                 row * 4 + token % 4 / 2 * 2 + i / 2) +
                           token % kStripRows / 4 * 4;
                });
        }
    }

    static __device__ __forceinline__ int first_token(int run, int which) { return run * 16 + which * 8; }

    template <int HeadDim, class Source>
    static __device__ __forceinline__ void store_value(const ValueRuns &v, const Source &source,
                                                       const ValueRuns::Pairs &x, unsigned char *page, uint4 *room,
                                                       int lane) {
        Int4Values<HeadDim, Source> values(v, source, page, room, lane);
        values.find_scales(x);
        float inverse[16];
        values.load_inverses(inverse);
        const int strip = values.strip();
        values.template store_words<4>(
            [&](int pair, int t) {
                const int token = t / 2 * 8 + t % 2 * 2;
                const auto of = [&](int i) { return values.quotients(x[token + i][pair], inverse[token + i], pair); };
                const float2 a = of(0), b = of(4), c = of(1), d = of(5);
                return uint2{int4_half_word(int4_floors(a.x, b.x), int4_floors(c.x, d.x), values.is_below()),
                             int4_half_word(int4_floors(a.y, b.y), int4_floors(c.y, d.y), values.is_below())};
            },
            [&](int row, int t) { return int4_words<ValuePage<HeadDim>>(strip, row * 4 + t) + v.run * 4; });
    }
};

}  // namespace hsb::cuda
