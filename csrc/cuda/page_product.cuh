// c += A b for a page A in shared memory: K [64 tokens x head_dim], or V^T [head_dim x 64 tokens], dense or 2:4.
//
// One warp, tensor core strips of 16 rows. `b` holds, per step of 32 cols, the four registers of a B fragment [32 x 8]
// (ptx/mma.cuh); the dense product takes the same registers two by two. `Tiles` such columns of 8 share each A read.
#pragma once

#include "cuda/page.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/shared.cuh"

namespace hsb::cuda {

// ldmatrix addresses of A's 16 x 16 tiles: lane l gives row l % 16, chunk l / 16 of the tile's two. The swizzle depends
// on the row within the strip only, so a strip further down is a constant away; and as rows are aligned to their 64 or
// 128 bytes, a step on is an XOR away: one register serves all. Pages are 128-byte aligned.
template <class T, class Shape, int Tiles, int Strips, int Steps>
__device__ __forceinline__ void multiply_dense(float (&c)[Tiles][Strips][4], std::uint32_t page,
                                               const std::uint32_t (&b)[Tiles][Steps][4], int lane) {
    static_assert(Strips == Shape::kStrips && Steps * kStepCols == Shape::kCols, "the whole of A");
    const std::uint32_t first = page + swizzled_chunk<128>(lane % 16, lane / 16);
#pragma unroll
    for (int step = 0; step < Steps * 2; ++step) {  // of 16 cols
        const std::uint32_t of_lane = (first ^ step % 4 * 2 * kChunkBytes) + step / 4 * (Shape::kRows * 128);
#pragma unroll
        for (int strip = 0; strip < Strips; ++strip) {
            std::uint32_t a[4];
            ptx::ldmatrix_x4(a, of_lane + strip * (kStripRows * 128));
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
                const std::uint32_t *b_step = b[tile][step / 2] + step % 2 * 2;
                ptx::mma_m16n8k16(c[tile][strip], a, b_step[0], b_step[1], T());
            }
        }
    }
}

template <class T, class Shape, int Tiles, int Strips, int Steps>
__device__ __forceinline__ void multiply_sparse(float (&c)[Tiles][Strips][4], std::uint32_t page,
                                                const std::uint32_t (&b)[Tiles][Steps][4], int lane) {
    static_assert(Strips == Shape::kStrips && Steps * kStepCols == Shape::kCols, "the whole of A");
    const std::uint32_t first = page + Shape::value_chunk(lane % 16, lane / 16);
    std::uint32_t metadata[Strips];  // for a pair of steps
#pragma unroll
    for (int step = 0; step < Steps; ++step) {
        if (step % 2 == 0)
#pragma unroll
            for (int strip = 0; strip < Strips; ++strip)
                metadata[strip] = ptx::load_shared_u32(page + Shape::metadata_word(strip, step / 2, lane));
        const std::uint32_t of_lane = first ^ step * 2 * kChunkBytes;
#pragma unroll
        for (int strip = 0; strip < Strips; ++strip) {
            std::uint32_t a[4];
            ptx::ldmatrix_x4(a, of_lane + strip * (kStripRows * Shape::kValueRowBytes));
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
                if (step % 2 == 0)
                    ptx::mma_sp_m16n8k32<0>(c[tile][strip], a, b[tile][step], metadata[strip], T());
                else
                    ptx::mma_sp_m16n8k32<1>(c[tile][strip], a, b[tile][step], metadata[strip], T());
            }
        }
    }
}

template <class T, class Shape, int Tiles, int Strips, int Steps>
__device__ __forceinline__ void multiply(hsb_block_kind kind, float (&c)[Tiles][Strips][4], std::uint32_t page,
                                         const std::uint32_t (&b)[Tiles][Steps][4], int lane) {
    switch (kind) {
    case HSB_SPARSE_2_4: return multiply_sparse<T, Shape>(c, page, b, lane);
    case HSB_DENSE: break;
    }
    multiply_dense<T, Shape>(c, page, b, lane);
}

}  // namespace hsb::cuda
