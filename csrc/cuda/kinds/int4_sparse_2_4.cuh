// Blocks that keep 2 of every 4 values, as int4. block_kinds.cuh says what a kind consists of.
#pragma once

#include "cuda/ptx/mma.cuh"
#include "int4_mma.cuh"
#include "int4_sparse_2_4_pack.cuh"
#include "params.h"

namespace hsb::cuda {

struct Int4Sparse24Mma {
    // T: what A becomes and B is.
    template <class T, class Shape, class B, int Tiles, int Strips>
    static __device__ __forceinline__ void multiply(float (&c)[Tiles][Strips][4], std::uint32_t page, const B &b,
                                                    int lane) {
        using Scales = Int4Scales<Shape>;
        constexpr bool kOfGroups = Scales::kIsOfGroups;
        // Four (pair, strip) at a time, which have four registers of metadata and two chunks of words: strips of one set; or, of
        // groups, all that there are of one pair or of several.
#pragma unroll
        for (int four = 0; four < Strips * B::kSteps / 8; ++four) {
            const auto pair_of = [&](int i) { return (four * 4 + i) / Strips; };
            const auto strip_of = [&](int i) { return (four * 4 + i) % Strips; };
            std::uint32_t stored[3], metadata[4];
#pragma unroll
            for (int i = 0; i < 3; ++i) stored[i] = ptx::load_shared_u32(page + int4_codes<Shape>(four, i, lane));
            four_int4_metadata(metadata, stored);
            std::uint32_t own[2][B::kTiles][4];
            Int4B<B::kTiles> scaled[2];
            const auto take = [&](int i, int step) {
                const int at = pair_of(i) * 2 + step, set = strip_of(i) / Scales::kStripsOfSet;
                if (!kOfGroups || set == 0) b.step(own[step], at, 0);
                take_int4_scales<T, Shape>(scaled[step], own[step], page, set, at, lane);
            };
            if constexpr (!kOfGroups) take(0, 0), take(0, 1);
#pragma unroll
            for (int two = 0; two < 2; ++two) {
                const uint4 words = ptx::load_shared_u32x4(page + int4_words<Shape>(four * 2 + two, lane));
                const std::uint32_t of_strip[2][2] = {{words.x, words.y}, {words.z, words.w}};
#pragma unroll
                for (int step = 0; step < 2; ++step)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int which = two * 2 + i;
                        if constexpr (kOfGroups) take(which, step);
                        std::uint32_t a[4];
                        fp16_of_int4(a, of_strip[i][step]);
#pragma unroll
                        for (int tile = 0; tile < B::kTiles; ++tile) {
                            const auto add = [&](const std::uint32_t (&of_tile)[4]) {
                                if (step == 0)
                                    ptx::mma_sp_m16n8k32<0>(c[tile][strip_of(which)], a, of_tile, metadata[which], T());
                                else
                                    ptx::mma_sp_m16n8k32<1>(c[tile][strip_of(which)], a, of_tile, metadata[which], T());
                            };
                            add(scaled[step].rounded[tile]);
                            if constexpr (Scales::kTakesRest) add(scaled[step].rest[tile]);
                        }
                    }
            }
        }
    }
};

struct Int4Sparse24Kind : Int4Sparse24Mma, Int4Sparse24Pack {
    static constexpr hsb_block_kind kKind = HSB_SPARSE_2_4;
    static constexpr bool kIsSparse = true;
    static constexpr bool kStays = false;

    HSB_HOST_DEVICE static constexpr int page_bytes(int head_dim) { return int4_sparse_page_bytes(head_dim); }

    static const void *pool(const hsb_pages &pages) { return pages.sparse; }
    static std::int64_t pool_page_bytes(const hsb_pages &pages) { return pages.sparse_page_bytes; }
    static void *pool(const hsb_compress_params &p) { return p.sparse; }
    static void *pool(const hsb_growing &g) { return g.sparse; }
    static std::int32_t pages(const hsb_growing &g) { return g.sparse_pages; }
};

}  // namespace hsb::cuda
