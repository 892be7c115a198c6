// Blocks that keep all of their values, as e4m3. block_kinds.cuh says what a kind consists of.
#pragma once

#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/place.cuh"
#include "fp8_dense_pack.cuh"
#include "fp8_dense_wgmma.cuh"
#include "fp8_mma.cuh"
#include "params.h"

namespace hsb::cuda {

struct Fp8DenseMma {
    // T: what A becomes and B is.
    template <class T, class Shape, class B, int Tiles, int Strips>
    static __device__ __forceinline__ void multiply(float (&c)[Tiles][Strips][4], std::uint32_t page, const B &b,
                                                    int /*lane*/) {
        static_assert(!B::kByStrip, "strips of a step share its registers");
        constexpr int kRowBytes = kFp8DenseRowBytes<Shape>;
        // Read here: of what outlives the page, the compiler would keep what comes of it in registers.
        const int lane = ptx::lane();
        const std::uint32_t first = page + swizzled_chunk<kRowBytes>(lane % 16, lane / 16);
#pragma unroll
        for (int step = 0; step < B::kSteps; ++step) {  // of 32 cols, two chunks
            std::uint32_t own[B::kTiles][4];
            b.dense_e4m3_step(own, step, 0);
            const std::uint32_t of_lane =
                (first ^ step % 4 * 2 * kChunkBytes) + step / 4 * (Shape::kRows * kPanelBytes);
#pragma unroll
            for (int strip = 0; strip < Strips; ++strip) {
                std::uint32_t bytes[4];
                ptx::ldmatrix_x4(bytes, of_lane + strip * (kStripRows * kRowBytes));
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    std::uint32_t a[4];
                    fp16_of_e4m3(a, bytes[half * 2], bytes[half * 2 + 1]);
#pragma unroll
                    for (int tile = 0; tile < B::kTiles; ++tile)
                        ptx::mma_m16n8k16(c[tile][strip], a, own[tile][half], own[tile][half + 2], T());
                }
            }
        }
    }
};

struct Fp8DenseKind : Fp8DenseMma, Fp8DenseWgmma, Fp8DensePack {
    static constexpr hsb_block_kind kKind = HSB_DENSE;
    static constexpr bool kIsSparse = false;
    static constexpr bool kStays = false;

    HSB_HOST_DEVICE static constexpr int page_bytes(int head_dim) { return fp8_dense_page_bytes(head_dim); }

    static const void *pool(const hsb_pages &pages) { return pages.dense; }
    static std::int64_t pool_page_bytes(const hsb_pages &pages) { return pages.dense_page_bytes; }
    static void *pool(const hsb_compress_params &p) { return p.dense; }
    static void *pool(const hsb_growing &g) { return g.dense; }
    static std::int32_t pages(const hsb_growing &g) { return g.dense_pages; }
};

}  // namespace hsb::cuda
