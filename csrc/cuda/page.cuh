// The CUDA page: one 64-token block of K or V for one kv head, byte for byte what shared memory holds when the tensor
// cores read it. One bulk copy brings it in; nothing is rearranged at run time.
//
// Sparse tensor cores take their sparse matrix as operand A, so each operand is stored as the A of its product:
//
//   K   A = K     [64 tokens    x head_dim]      scores^T = A q^T           groups of 4 run along head_dim
//   V   A = V^T   [head_dim     x 64 tokens]     out^T   += A p^T           groups of 4 run along tokens
//        rows ----^          ^---- cols: the contraction
//
// V in groups along head_dim (hsb_axis) has them along cols, too, as A of a product that is the same once it is written out:
//
//   A [head_dim / 4 groups x 64 * 4], col 4 t + i: element i of the group in token t
//   out[4 g + j] = sum over t, i of A[g][4 t + i] * (i == j ? p[t] : 0)      four columns of B for each query head
//
// Each kind of block draws its bytes in a file of its own: kinds/dense_page.cuh, kinds/sparse_2_4_page.cuh, and both kinds
// of e4m3 pages in kinds/fp8_page.cuh. All are made of 16-byte chunks in rows of 128, 64 or 32 bytes, and swizzled: so that
// 8 rows' chunks of one column fall into 8 bank groups.
//
// A partial last block is a dense page in which the missing tokens are zero. The torch definition of the same bytes
// is hsbench/cache/cuda_layout.py.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "params.h"

namespace hsb::cuda {

HSB_HOST_DEVICE constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

constexpr int kBlock = 64;      // tokens
constexpr int kPanelCols = 64;  // 128 bytes
constexpr int kPanelBytes = 128;
constexpr int kChunkBytes = 16;  // what a swizzle moves: 8 values
constexpr int kStripRows = 16;   // rows of one mma
constexpr int kStepCols = 32;    // cols of one mma.sp
constexpr int kPairCols = 64;    // cols of two such steps: those that one metadata register serves

// Swizzled byte offset of 16-byte chunk `chunk` of row `row`, for rows of 128, of 64 or of 32 bytes.
template <int RowBytes>
HSB_HOST_DEVICE constexpr int swizzle_key(int row) {
    static_assert(RowBytes == 128 || RowBytes == 64 || RowBytes == 32, "rows are 128, 64 or 32 bytes");
    return RowBytes == 128 ? row & 7 : RowBytes == 64 ? row >> 1 & 3 : row >> 2 & 1;
}
template <int RowBytes>
HSB_HOST_DEVICE constexpr int swizzled_chunk(int row, int chunk) {
    return row * RowBytes + (chunk ^ swizzle_key<RowBytes>(row)) * kChunkBytes;
}

// From a chunk's offset to that of the same chunk `rows` further down, where adding them to its row carries nothing within 8
// rows.
template <int RowBytes>
HSB_HOST_DEVICE constexpr int rows_below(int offset, int rows) {
    return (offset ^ swizzle_key<RowBytes>(rows) * kChunkBytes) + rows * RowBytes;
}
static_assert(rows_below<64>(swizzled_chunk<64>(8, 1), 5) == swizzled_chunk<64>(13, 1), "the key of 13 is that of 5");

// The matrix that a page holds.
template <int Rows_, int Cols_>
struct Page {
    static constexpr int kRows = Rows_, kCols = Cols_;
    static_assert(kRows % kStripRows == 0 && kCols % kPanelCols == 0, "whole strips and panels");

    static constexpr int kStrips = kRows / kStripRows;
    static constexpr int kPairs = kCols / kPairCols;
};

template <int HeadDim>
using KeyPage = Page<kBlock, HeadDim>;
template <int HeadDim>
using ValuePage = Page<HeadDim, kBlock>;

constexpr int kGroup = 4;  // elements of which 2:4 keeps two
template <int HeadDim>
using HeadDimValuePage = Page<HeadDim / kGroup, kBlock * kGroup>;

}  // namespace hsb::cuda
