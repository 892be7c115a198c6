// The CUDA page: one 64-token block of K or V for one kv head, byte for byte what shared memory holds when the tensor
// cores read it. One bulk copy brings it in; nothing is rearranged at run time.
//
// Sparse tensor cores take their sparse matrix as operand A, so each operand is stored as the A of its product:
//
//   K   A = K     [64 tokens    x head_dim]      scores^T = A q^T           groups of 4 run along head_dim
//   V   A = V^T   [head_dim     x 64 tokens]     out^T   += A p^T           groups of 4 run along tokens
//        rows ----^          ^---- cols: the contraction
//
// Dense page, rows * cols * 2 bytes: panels of 64 cols, one after another; a panel's row is 128 bytes.
//
//              |<------- 128 bytes, 8 chunks ------->|
//   panel 0    row 0:      chunk 0  1  2  3  4  5  6  7       chunk c (8 values) of row r lies at chunk c ^ (r & 7):
//              row 1:            1  0  3  2  5  4  7  6       the 128-byte swizzle of ldmatrix, wgmma and TMA, so that
//              ...                                            8 rows' chunks of one column fall into 8 bank groups
//   panel 1    (K with head_dim 128 only)
//
// 2:4 page: the kept values [rows][cols / 2], two of every group of 4, in ascending order, then the metadata.
//
//   values     rows * cols bytes, one panel. A row is `cols` bytes: 128 (K, head_dim 128) swizzled as above, or 64 (V,
//              and K with head_dim 64) with the 64-byte swizzle: chunk c (0..3) of row r lies at c ^ (r >> 1 & 3).
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
//
// A partial last block is a dense page in which the missing tokens are zero. The torch definition of the same bytes
// is hsbench/cache/cuda_layout.py.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "params.h"

namespace hsb::cuda {

HSB_HOST_DEVICE constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

constexpr int kBlock = 64;       // tokens
constexpr int kPanelCols = 64;   // 128 bytes
constexpr int kChunkBytes = 16;  // what a swizzle moves: 8 values
constexpr int kStripRows = 16;   // rows of one mma
constexpr int kStepCols = 32;    // cols of one mma.sp
constexpr int kPairCols = 64;    // cols that one metadata register serves
constexpr int kPairGroups = kPairCols / 4;

HSB_HOST_DEVICE constexpr int dense_page_bytes(int head_dim) { return kBlock * head_dim * 2; }
HSB_HOST_DEVICE constexpr int sparse_value_bytes(int head_dim) { return kBlock * head_dim; }
HSB_HOST_DEVICE constexpr int metadata_bytes(int head_dim) { return kBlock * head_dim / 8; }
HSB_HOST_DEVICE constexpr int sparse_page_bytes(int head_dim) {
    return sparse_value_bytes(head_dim) + metadata_bytes(head_dim);
}
static_assert(sparse_page_bytes(128) == 9216 && sparse_page_bytes(64) == 4608, "9/16 of the dense page");
static_assert(sparse_page_bytes(64) % 128 == 0, "pages of a pool keep the alignment that bulk copies need");

// Swizzled byte offset of 16-byte chunk `chunk` of row `row`, for rows of 128 or of 64 bytes.
template <int RowBytes>
HSB_HOST_DEVICE constexpr int swizzled_chunk(int row, int chunk) {
    static_assert(RowBytes == 128 || RowBytes == 64, "rows are 128 or 64 bytes");
    return row * RowBytes + (chunk ^ (RowBytes == 128 ? row & 7 : row >> 1 & 3)) * kChunkBytes;
}

// The matrix that a page holds. Byte offsets are from the start of the page.
template <int Rows_, int Cols_>
struct Page {
    static constexpr int kRows = Rows_, kCols = Cols_;
    static_assert(kRows % kStripRows == 0 && kCols % kPanelCols == 0, "whole strips and panels");

    static constexpr int kStrips = kRows / kStripRows;
    static constexpr int kPairs = kCols / kPairCols;

    // Dense: 16-byte chunk of cols 8 c .. 8 c + 7.
    HSB_HOST_DEVICE static constexpr int dense_chunk(int row, int c) {
        return c / 8 * (kRows * 128) + swizzled_chunk<128>(row, c % 8);
    }

    // 2:4: 16-byte chunk of kept values 8 c .. 8 c + 7, which stem from cols 16 c .. 16 c + 15.
    static constexpr int kValueRowBytes = kCols;
    HSB_HOST_DEVICE static constexpr int value_chunk(int row, int c) { return swizzled_chunk<kValueRowBytes>(row, c); }

    // 2:4: a lane's metadata register for 16-row strip `strip` and pair of steps `pair`.
    HSB_HOST_DEVICE static constexpr int metadata_word(int strip, int pair, int lane) {
        return kRows * kCols + ((strip * kPairs + pair) * 32 + lane) * 4;
    }
};

template <int HeadDim>
using KeyPage = Page<kBlock, HeadDim>;
template <int HeadDim>
using ValuePage = Page<HeadDim, kBlock>;

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
