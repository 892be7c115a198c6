// Blocks that keep all of their values, as int4. block_kinds.cuh says what a kind consists of.
#pragma once

#include "cuda/ptx/mma.cuh"
#include "int4_dense_pack.cuh"
#include "int4_mma.cuh"
#include "params.h"

namespace hsb::cuda {

struct Int4DenseMma {
    // T: what A becomes and B is.
    template <class T, class Shape, class B, int Tiles, int Strips>
    static __device__ __forceinline__ void multiply(float (&c)[Tiles][Strips][4], std::uint32_t page, const B &b,
                                                    int lane) {
        using Scales = Int4Scales<Shape>;
        // B is asked for once a step, whatever takes it.
        constexpr int kPairs = B::kSteps / 2, kOuter = Scales::kIsOfGroups ? kPairs : Scales::kSets;
        constexpr int kInner = Scales::kIsOfGroups ? Scales::kSets : kPairs;
#pragma unroll
        for (int outer = 0; outer < kOuter; ++outer) {
            std::uint32_t own[2][B::kTiles][4];
#pragma unroll
            for (int inner = 0; inner < kInner; ++inner) {
                const int set = Scales::kIsOfGroups ? inner : outer, pair = Scales::kIsOfGroups ? outer : inner;
                Int4B<B::kTiles> scaled[2];
#pragma unroll
                for (int step = 0; step < 2; ++step) {
                    if (!Scales::kIsOfGroups || set == 0) b.step(own[step], pair * 2 + step, 0);
                    take_int4_scales<T, Shape>(scaled[step], own[step], page, set, pair * 2 + step, lane);
                }
#pragma unroll
                for (int i = 0; i < Scales::kStripsOfSet; ++i) {
                    const int strip = set * Scales::kStripsOfSet + i;
                    const uint4 words = ptx::load_shared_u32x4(page + int4_words<Shape>(pair * Strips + strip, lane));
                    const std::uint32_t of_tile[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
                    for (int tile16 = 0; tile16 < 4; ++tile16) {  // of 16 cols
                        const int step = tile16 / 2, half = tile16 % 2;
                        std::uint32_t a[4];
                        fp16_of_int4(a, of_tile[tile16]);
#pragma unroll
                        for (int tile = 0; tile < B::kTiles; ++tile) {
                            const auto add = [&](const std::uint32_t (&of_tile)[4]) {
                                ptx::mma_m16n8k16(c[tile][strip], a, of_tile[half], of_tile[half + 2], T());
                            };
                            add(scaled[step].rounded[tile]);
                            if constexpr (Scales::kTakesRest) add(scaled[step].rest[tile]);
                        }
                    }
                }
            }
        }
    }
};

struct Int4DenseKind : Int4DenseMma, Int4DensePack {
    static constexpr hsb_block_kind kKind = HSB_DENSE;
    static constexpr bool kIsSparse = false;
    static constexpr bool kStays = false;

    HSB_HOST_DEVICE static constexpr int page_bytes(int head_dim) { return int4_dense_page_bytes(head_dim); }

    static const void *pool(const hsb_pages &pages) { return pages.dense; }
    static std::int64_t pool_page_bytes(const hsb_pages &pages) { return pages.dense_page_bytes; }
    static void *pool(const hsb_compress_params &p) { return p.dense; }
    static void *pool(const hsb_growing &g) { return g.dense; }
    static std::int32_t pages(const hsb_growing &g) { return g.dense_pages; }
};

}  // namespace hsb::cuda
