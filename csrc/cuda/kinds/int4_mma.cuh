// What both kinds of int4 pages (int4_page.cuh) are to the products of one warp (page_product.cuh): A becomes fp16 on its way to
// the tensor cores, and its scales go with B, for they belong to the contraction's index.
//
// A nibble's two fp16 neighbours are (2 m + 1) 2^-21, with their signs: subnormal numbers, which the tensor cores take as they
// are, and kInt4Unit times less than they stand for. What is multiplied so counts that much more (block_kinds.cuh).
//
// Where scales come from is Int4Scales' to say; B may differ by strip, as it does for V, whose strips of 64 channels have a set
// of scales each.
#pragma once

#include <cstdint>

#include "cuda/element.cuh"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/shared.cuh"
#include "int4_page.cuh"

namespace hsb::cuda {

constexpr float kInt4Unit = 1048576.0f;  // 2^20

// Four registers of A of a word of 8 nibbles.
__device__ __forceinline__ void fp16_of_int4(std::uint32_t (&a)[4], std::uint32_t word) {
#pragma unroll
    for (int r = 0; r < 4; ++r) a[r] = ptx::mask_and_set(__funnelshift_r(word, word, 4 * r), 0x80708070u, 0x00080008u);
}

// The registers of B of a step, times the scales of a set: rounded products, and what rounding took of them.
template <int Tiles>
struct Int4B {
    std::uint32_t rounded[Tiles][4], rest[Tiles][4];
};

// T: fp16.
template <class T, class Shape, int Tiles>
__device__ __forceinline__ void take_int4_scales(Int4B<Tiles> &to, const std::uint32_t (&b)[Tiles][4],
                                                 std::uint32_t page, int set, int step, int lane) {
    const std::uint32_t at = page + Int4Scales<Shape>::at(set, step, lane % 4);
    uint4 scales;
    if constexpr (Int4Scales<Shape>::kIsOfGroups) {
        const uint2 four = ptx::load_shared_u32x2(at);
        scales = {ptx::low_halves(four.x, four.x), ptx::high_halves(four.x, four.x), ptx::low_halves(four.y, four.y),
                  ptx::high_halves(four.y, four.y)};
    } else {
        scales = ptx::load_shared_u32x4(at);
    }
    const std::uint32_t of_register[4] = {scales.x, scales.y, scales.z, scales.w};
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            to.rounded[tile][n] = Element<T>::multiply(b[tile][n], of_register[n]);
            to.rest[tile][n] = Element<T>::product_rest(b[tile][n], of_register[n], to.rounded[tile][n]);
        }
}

// A metadata register of the codes of its 8 groups: PRMT looks up four nibbles in a table of 8 bytes.
__device__ __forceinline__ std::uint32_t metadata_of_codes(std::uint32_t codes) {
    // Positions of the two that stay: 0 1, 0 2, 0 3, 1 2, 1 3, 2 3.
    constexpr std::uint32_t kFirst = 0x090c0804u, kLast = 0x00000e0du;
    const std::uint32_t even = ptx::permute_bytes(kFirst, kLast, codes);
    const std::uint32_t odd = ptx::permute_bytes(kFirst, kLast, codes >> 16);
    return odd * 16 + even;
}

// The metadata of four neighbours (pair, strip).
__device__ __forceinline__ void four_int4_metadata(std::uint32_t (&metadata)[4], const std::uint32_t (&stored)[3]) {
    constexpr std::uint32_t kCodes = 0x77777777u, kSecond = 0x44444444u, kThird = 0x22222222u;
#pragma unroll
    for (int i = 0; i < 3; ++i) metadata[i] = metadata_of_codes(stored[i] & kCodes);
    const std::uint32_t two = (stored[1] >> 1 & kSecond) | (stored[2] & ~kSecond);
    const std::uint32_t three = (stored[0] >> 2 & kThird) | (two & ~kThird);
    metadata[3] = metadata_of_codes(three >> 1 & kCodes);
}

}  // namespace hsb::cuda
