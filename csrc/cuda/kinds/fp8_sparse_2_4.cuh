// Blocks that keep 2 of every 4 values, as e4m3. block_kinds.cuh says what a kind consists of.
#pragma once

#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/place.cuh"
#include "cuda/ptx/shared.cuh"
#include "fp8_mma.cuh"
#include "fp8_sparse_2_4_pack.cuh"
#include "fp8_sparse_2_4_wgmma.cuh"
#include "params.h"

namespace hsb::cuda {

struct Fp8Sparse24Mma {
    // T: what A becomes and B is.
    template <class T, class Shape, class B, int Tiles, int Strips>
    static __device__ __forceinline__ void multiply(float (&c)[Tiles][Strips][4], std::uint32_t page, const B &b,
                                                    int /*lane*/) {
        constexpr int kRowBytes = kFp8SparseRowBytes<Shape>;
        static_assert(B::kSteps % 2 == 0, "a metadata register and four tiles of A are of two steps");
        const int lane = ptx::lane();  // read here, as in fp8_dense.cuh
        const std::uint32_t first = page + swizzled_chunk<kRowBytes>(lane % 16, lane / 16);
        const Fp8Metadata metadata_of(lane);
        // Where there are few strips, B's registers are of one step at a time, and their A's of two.
        constexpr int kAtOnce = Strips <= 2 && !B::kByStrip ? Strips : 1;
#pragma unroll
        for (int pair = 0; pair < B::kSteps / 2; ++pair) {
            std::uint32_t own[2][B::kTiles][4];
#pragma unroll
            for (int begin = 0; begin < Strips; begin += kAtOnce) {
                std::uint32_t metadata[kAtOnce], bytes[kAtOnce][4];
#pragma unroll
                for (int i = 0; i < kAtOnce; ++i) {
                    metadata[i] =
                        metadata_of(ptx::load_shared_u32(page + fp8_metadata_word<Shape>(begin + i, pair, lane)));
                    ptx::ldmatrix_x4(bytes[i],
                                     (first ^ pair * 2 * kChunkBytes) + (begin + i) * (kStripRows * kRowBytes));
                }
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    if (begin == 0 || B::kByStrip) b.step(own[half], pair * 2 + half, begin);
#pragma unroll
                    for (int i = 0; i < kAtOnce; ++i) {
                        std::uint32_t a[4];
                        fp16_of_e4m3(a, bytes[i][half * 2], bytes[i][half * 2 + 1]);
#pragma unroll
                        for (int tile = 0; tile < B::kTiles; ++tile) {
                            if (half == 0)
                                ptx::mma_sp_m16n8k32<0>(c[tile][begin + i], a, own[0][tile], metadata[i], T());
                            else
                                ptx::mma_sp_m16n8k32<1>(c[tile][begin + i], a, own[1][tile], metadata[i], T());
                        }
                    }
                }
            }
        }
    }
};

struct Fp8Sparse24Kind : Fp8Sparse24Mma, Fp8Sparse24Wgmma, Fp8Sparse24Pack {
    static constexpr hsb_block_kind kKind = HSB_SPARSE_2_4;
    static constexpr bool kIsSparse = true;
    static constexpr bool kStays = false;

    HSB_HOST_DEVICE static constexpr int page_bytes(int head_dim) { return fp8_sparse_page_bytes(head_dim); }

    static const void *pool(const hsb_pages &pages) { return pages.sparse; }
    static std::int64_t pool_page_bytes(const hsb_pages &pages) { return pages.sparse_page_bytes; }
    static void *pool(const hsb_compress_params &p) { return p.sparse; }
    static void *pool(const hsb_growing &g) { return g.sparse; }
    static std::int32_t pages(const hsb_growing &g) { return g.sparse_pages; }
};

}  // namespace hsb::cuda
