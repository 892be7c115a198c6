// The bytes of a 2:4 page; what rows and cols are is in page.cuh.
//
// The kept values [rows][cols / 2], two of every group of 4, in ascending order, then the metadata.
//
//   values     rows * cols bytes, one panel. A row is `cols` bytes: 128 (K, head_dim 128), swizzled as in a dense page, or
//              64 (V, and K with head_dim 64) with the 64-byte swizzle: chunk c (0..3) of row r lies at c ^ (r >> 1 & 3).
//              V in groups along head_dim: two panels with rows of 128.
//   metadata   rows * cols / 8 bytes: u32 [rows / 16 strips][cols / 64 step pairs][32 lanes], each the register that a
//              lane hands to mma.sp.m16n8k32 for both steps of 32 cols of that pair:
//
//              lane 4 i + j, bits 4 g .. 4 g + 3          row i     of the strip, group (j & 1) * 4 + g of step j >> 1
//                            bits 4 g + 16 .. 4 g + 19    row i + 8 of the strip, the same group           (g = 0 .. 3)
//
//              So lanes 4 i + {0, 1} serve the first step (sparsity selector 0), 4 i + {2, 3} the second (selector 1).
//              The 4 bits of a group are the positions of its two values, the lower one in the lower 2 bits.
//              PTX ISA, "Matrix fragments for sparse mma.m16n8k32 with .f16 and .bf16 types": thread 0 of a quad holds
//              cols 0..15 of rows i and i + 8 (low and high half), thread 1 cols 16..31. wgmma.sp m64nNk32 asks warp w
//              for strip w in the same order.
#pragma once

#include "cuda/page.cuh"

namespace hsb::cuda {

HSB_HOST_DEVICE constexpr int sparse_value_bytes(int head_dim) { return kBlock * head_dim; }
HSB_HOST_DEVICE constexpr int metadata_bytes(int head_dim) { return kBlock * head_dim / 8; }
HSB_HOST_DEVICE constexpr int sparse_page_bytes(int head_dim) {
    return sparse_value_bytes(head_dim) + metadata_bytes(head_dim);
}
static_assert(sparse_page_bytes(128) == 9216 && sparse_page_bytes(64) == 4608, "9/16 of the dense page");
static_assert(sparse_page_bytes(64) % 128 == 0, "pages of a pool keep the alignment that bulk copies need");

template <class Shape>
constexpr int kValueRowBytes = Shape::kCols < kPanelBytes ? Shape::kCols : kPanelBytes;  // of a panel

// Where the 16-byte chunk of kept values 8 c .. 8 c + 7 starts, which stem from cols 16 c .. 16 c + 15.
template <class Shape>
HSB_HOST_DEVICE constexpr int value_chunk(int row, int c) {
    constexpr int kChunks = kValueRowBytes<Shape> / kChunkBytes;
    return c / kChunks * (Shape::kRows * kPanelBytes) + swizzled_chunk<kValueRowBytes<Shape>>(row, c % kChunks);
}

// Where a lane's metadata register for 16-row strip `strip` and pair of steps `pair` is.
template <class Shape>
HSB_HOST_DEVICE constexpr int metadata_word(int strip, int pair, int lane) {
    return Shape::kRows * Shape::kCols + ((strip * Shape::kPairs + pair) * 32 + lane) * 4;
}

// Where the 4 bits of a group lie within a strip's 32 registers of one pair: `row` 0..15 of the strip, `group` 0..15
// of the pair's 64 cols.
struct MetadataPlace {
    int lane;
    int bit;
};
HSB_HOST_DEVICE constexpr MetadataPlace metadata_place(int row, int group) {
    return {row % 8 * 4 + group / 4, row / 8 * 16 + group % 4 * 4};
}
static_assert(metadata_place(9, 6).lane == 5 && metadata_place(9, 6).bit == 24, "row i + 8: high half");
static_assert(metadata_place(0, 8).lane == 2, "the second step's registers are lanes 2 and 3 of each quad");

}  // namespace hsb::cuda
