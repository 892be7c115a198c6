// Which rows of a page of e4m3 a lane's chunks of K become (compress/strip.cuh), whatever the page's kind.
#pragma once

#include "cuda/compress/strip.cuh"
#include "fp8_page.cuh"

namespace hsb::cuda {

// Tokens are dealt over the halves of a strip, so those of a lane, an even number apart, are half as many rows apart.
template <int HeadDim, int RowBytes>
struct Fp8KeyRows {
    using Strip = KeyStrip<HeadDim>;
    static_assert(Strip::kRowsApart % 2 == 0, "a lane's tokens are all in one half of a strip");
    static constexpr int kApart = Strip::kRowsApart / 2;

    static __device__ __forceinline__ int first_row(const KeyStrip<HeadDim> &k) { return fp8_row_of_token(k.row0); }
    // Offset in a page of 16-byte chunk `chunk` of the lane's first row; and of the same in the row of its i-th chunk.
    static __device__ __forceinline__ int first(const KeyStrip<HeadDim> &k, int chunk) {
        return swizzled_chunk<RowBytes>(first_row(k), chunk);
    }
    static __device__ __forceinline__ int below(int first, int i) { return rows_below<RowBytes>(first, i * kApart); }
};

}  // namespace hsb::cuda
