// The bytes of a dense page; what rows and cols are is in page.cuh.
//
// rows * cols * 2 bytes: panels of 64 cols, one after another; a panel's row is 128 bytes.
//
//              |<------- 128 bytes, 8 chunks ------->|
//   panel 0    row 0:      chunk 0  1  2  3  4  5  6  7       chunk c (8 values) of row r lies at chunk c ^ (r & 7):
//              row 1:            1  0  3  2  5  4  7  6       the 128-byte swizzle of ldmatrix, wgmma and TMA
//              ...
//   panel 1    (K with head_dim 128 only)
#pragma once

#include "cuda/page.cuh"

namespace hsb::cuda {

HSB_HOST_DEVICE constexpr int dense_page_bytes(int head_dim) { return kBlock * head_dim * 2; }

// Where the 16-byte chunk of cols 8 c .. 8 c + 7 starts.
template <class Shape>
HSB_HOST_DEVICE constexpr int dense_chunk(int row, int c) {
    return c / 8 * (Shape::kRows * 128) + swizzled_chunk<128>(row, c % 8);
}

}  // namespace hsb::cuda
