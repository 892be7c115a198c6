// The bytes of pages whose values are e4m3, of both kinds; what rows and cols are is in page.cuh. The tensor cores' 8-bit
// operands want the contraction along a row, as the values here have it.
//
// Rows. V's are head dims in order. K's are tokens, dealt over the two halves of each strip of 16:
//
//   row i of a strip: its token 2 i       row i + 8: its token 2 i + 1       (i = 0 .. 7)
//
// Then the two rows of a C fragment that a thread holds are neighbouring tokens, and what it makes of them can be stored as
// one pair along the contraction of the next product.
//
//   dense   values [rows][cols], a byte each
//   2:4     values [rows][cols / 2], two of every group of 4, in ascending order; then the metadata
//
//   values     one panel, two of V in groups along head_dim, rows of 128, 64 or 32 bytes; 16-byte chunk c of row r lies at c ^ (r & 7), c ^ (r >> 1 & 3) or
//              c ^ (r >> 2 & 1): the swizzles of wgmma and TMA for such rows, from the page's start.
//   metadata   rows * cols / 8 bytes: u32 [rows / 16 strips][cols / 64][32 lanes], in the register order of wgmma.sp m64nNk64
//              of e4m3, so that one 4-byte load per lane serves one of its instructions:
//
//              lane 4 i + j, bits 4 g .. 4 g + 3     row i + 8 (j & 1) of the strip,
//                                                    group 8 (j >> 1) + g of the 64 cols       (g = 0 .. 7)
#pragma once

#include "cuda/page.cuh"

namespace hsb::cuda {

HSB_HOST_DEVICE constexpr int fp8_dense_page_bytes(int head_dim) { return kBlock * head_dim; }
HSB_HOST_DEVICE constexpr int fp8_metadata_bytes(int head_dim) { return kBlock * head_dim / 8; }
HSB_HOST_DEVICE constexpr int fp8_sparse_page_bytes(int head_dim) {
    return kBlock * head_dim / 2 + fp8_metadata_bytes(head_dim);
}
static_assert(fp8_sparse_page_bytes(128) == 5120 && fp8_sparse_page_bytes(64) == 2560, "5/8 of a dense page");
static_assert(fp8_sparse_page_bytes(64) % 128 == 0, "pages of a pool keep the alignment that bulk copies need");

// A panel's row: of a dense page, and of a 2:4 page's values.
template <class Shape>
constexpr int kFp8DenseRowBytes = Shape::kCols < kPanelBytes ? Shape::kCols : kPanelBytes;
template <class Shape>
constexpr int kFp8SparseRowBytes = Shape::kCols / 2;
static_assert(kFp8SparseRowBytes<HeadDimValuePage<128>> == kPanelBytes, "2:4 pages have one panel");

// Where the 16-byte chunk of cols 16 c .. 16 c + 15 of a dense page starts.
template <class Shape>
HSB_HOST_DEVICE constexpr int fp8_dense_chunk(int row, int c) {
    constexpr int kChunks = kFp8DenseRowBytes<Shape> / kChunkBytes;
    return c / kChunks * (Shape::kRows * kPanelBytes) + swizzled_chunk<kFp8DenseRowBytes<Shape>>(row, c % kChunks);
}

// Where a lane's metadata register for 16-row strip `strip` and cols 64 * pair .. 64 * pair + 63 is.
template <class Shape>
HSB_HOST_DEVICE constexpr int fp8_metadata_word(int strip, int pair, int lane) {
    return Shape::kRows * Shape::kCols / 2 + ((strip * Shape::kPairs + pair) * 32 + lane) * 4;
}

// Where the 4 bits of a group lie within a strip's 32 registers of one pair, two groups a byte: `row` 0..15 of the strip,
// `group` 0..15 of the pair's 64 cols.
HSB_HOST_DEVICE constexpr int fp8_metadata_byte(int row, int group) {
    return (row % 8 * 4 + group / 8 * 2 + row / 8) * 4 + group % 8 / 2;
}
static_assert(fp8_metadata_byte(9, 10) == (4 + 2 + 1) * 4 + 1,
              "lane 4 i + j: row i + 8 (j & 1), groups 8 (j >> 1) and on");

// Which token of a block row `row` of K's page is, 0..63; and the row of a token.
HSB_HOST_DEVICE constexpr int fp8_token_of_row(int row) { return row / 16 * 16 + row % 8 * 2 + row / 8 % 2; }
HSB_HOST_DEVICE constexpr int fp8_row_of_token(int token) { return token / 16 * 16 + token % 16 / 2 + token % 2 * 8; }
static_assert(fp8_token_of_row(9) == 3 && fp8_row_of_token(3) == 9, "neighbours are 8 rows apart");

}  // namespace hsb::cuda
