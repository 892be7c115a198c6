// Prune, choose and pack one of K and V into pages: the kernels, and the exact loss that blocks are chosen by.
//
// K and V share one path: lanes x steps of c, as page.h pictures a page. Magnitudes (a 16-bit float without its sign)
// are ordered like the integers that their bits spell, so no kernel here computes with floats, except to sum a loss.
#pragma once

#include <cstddef>
#include <cstdint>

#include "params.h"

namespace hsb::cpu {

// What a kernel needs to know of a block of 64 tokens.
struct BlockShape {
    int head_dim;
    int operand;  // an hsb_operand
    int dtype;    // an hsb_dtype
};

constexpr std::uint16_t infinity_bits(int dtype) { return dtype == HSB_FP16 ? 0x7c00 : 0x7f80; }

// ---- Loss ----------------------------------------------------------------------------------------------------------
// An exact sum of magnitudes, in units of 2^-133 (the smallest bf16 subnormal; fp16's are multiples of it), least
// significant limb first. 4096 elements below 2^128 stay below 2^273.
struct Loss {
    static constexpr int kLimbs = 5;
    std::uint64_t limb[kLimbs];
};

bool less(const Loss &a, const Loss &b);

// A double that holds a non-negative multiple of 2^-133 below 2^128, as it is.
Loss loss_of(double sum);

// The elements that 2:4 would drop from a block: their sum in double, and the range of the nonzero ones.
struct DroppedSum {
    double sum;
    std::uint16_t smallest;  // magnitude bits; above any number's if all are zero
    std::uint16_t largest;
};

// Whether the sum is exact in double whatever the order of summation. fp16: always, 4096 multiples of 2^-24 below
// 2^16 need 52 bits. bf16: with E the largest exponent and e the smallest, 4096 numbers below 2^(E+1) in units of
// 2^(e-7), the lowest bit of the smallest, need 20 + E - e bits. Subnormals do not count on, because a thread of the
// caller's may flush them to zero.
constexpr bool is_exact(const DroppedSum &dropped, int dtype) {
    return dtype == HSB_FP16 || dropped.smallest > dropped.largest ||
           (dropped.smallest >> 7 >= 1 && (dropped.largest >> 7) - (dropped.smallest >> 7) <= 33);
}

// The same sum for any bf16 block, element by element: mantissas are added up per exponent, then joined.
Loss exact_loss_bf16(const std::uint16_t *block, int head_dim, int operand);

// ---- Kernels -------------------------------------------------------------------------------------------------------
// `block` is [64, head_dim], contiguous.
template <class Isa>
DroppedSum sum_dropped(const std::uint16_t *block, BlockShape shape);

// Both pack a block as page.h defines and return the largest magnitude bits seen, by which the caller knows whether
// to look for a NaN or infinity.
template <class Isa>
std::uint16_t pack_dense(const std::uint16_t *block, std::byte *page, BlockShape shape);

template <class Isa>
std::uint16_t pack_sparse(const std::uint16_t *block, std::byte *page, BlockShape shape);

}  // namespace hsb::cpu
