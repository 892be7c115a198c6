// c += A b for a page A in shared memory: K [64 tokens x head_dim], or V^T [head_dim x 64 tokens], or V in groups along
// head_dim (page.cuh), of any kind.
//
// One warp, tensor core strips of 16 rows. `b` gives, per step of 32 cols, the four registers of a B fragment [32 x 8]
// (kinds/operand_b.cuh; ptx/mma.cuh); the dense product takes the same registers two by two. Columns of 8 share each A read.
//
// ldmatrix addresses of A's 16 x 16 tiles: lane l gives row l % 16, chunk l / 16 of the tile's two. The swizzle depends
// on the row within the strip only, so a strip further down is a constant away; and as rows are aligned to their 64 or
// 128 bytes, a step on is an XOR away: one register serves all. Pages are 128-byte aligned.
#pragma once

#include "cuda/block_kinds.cuh"

namespace hsb::cuda {

template <class T, class Shape, class Kinds = BlockKinds, class B, int Tiles, int Strips>
__device__ __forceinline__ void multiply(hsb_block_kind kind, float (&c)[Tiles][Strips][4], std::uint32_t page,
                                         const B &b, int lane) {
    static_assert(Strips == Shape::kStrips && B::kSteps * kStepCols == Shape::kCols, "the whole of A");
    static_assert(B::kTiles <= Tiles, "sums for all columns");
    with_kind<Kinds>(kind, [&](auto of_kind) { of_kind.template multiply<T, Shape>(c, page, b, lane); });
}

}  // namespace hsb::cuda
