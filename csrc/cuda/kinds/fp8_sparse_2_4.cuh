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
    template <class T, class Shape, int Tiles, int Strips, int Steps>
    static __device__ __forceinline__ void multiply(float (&c)[Tiles][Strips][4], std::uint32_t page,
                                                    const std::uint32_t (&b)[Tiles][Steps][4], int /*lane*/) {
        constexpr int kRowBytes = kFp8SparseRowBytes<Shape>;
        static_assert(Steps % 2 == 0, "a metadata register and four tiles of A are of two steps");
        const int lane = ptx::lane();  // read here, as in fp8_dense.cuh
        const std::uint32_t first = page + swizzled_chunk<kRowBytes>(lane % 16, lane / 16);
        const Fp8Metadata metadata_of(lane);
#pragma unroll
        for (int pair = 0; pair < Steps / 2; ++pair)
#pragma unroll
            for (int strip = 0; strip < Strips; ++strip) {
                const std::uint32_t metadata =
                    metadata_of(ptx::load_shared_u32(page + fp8_metadata_word<Shape>(strip, pair, lane)));
                std::uint32_t bytes[4], a[4];
                ptx::ldmatrix_x4(bytes, (first ^ pair * 2 * kChunkBytes) + strip * (kStripRows * kRowBytes));
                fp16_of_e4m3(a, bytes[0], bytes[1]);
#pragma unroll
                for (int tile = 0; tile < Tiles; ++tile)
                    ptx::mma_sp_m16n8k32<0>(c[tile][strip], a, b[tile][pair * 2], metadata, T());
                fp16_of_e4m3(a, bytes[2], bytes[3]);
#pragma unroll
                for (int tile = 0; tile < Tiles; ++tile)
                    ptx::mma_sp_m16n8k32<1>(c[tile][strip], a, b[tile][pair * 2 + 1], metadata, T());
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
};

}  // namespace hsb::cuda
