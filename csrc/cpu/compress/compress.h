// Prune, choose and pack one of K and V into pages: the kernels, and the exact loss that blocks are chosen by.
//
// K and V share one path: lanes x steps of c, as page.h pictures a page. Magnitudes (a 16-bit float without its sign)
// are ordered like the integers that their bits spell, so no kernel here computes with floats, except to sum a loss.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element.h"
#include "params.h"

namespace hsb::cpu {

// What a kernel needs to know of a block of 64 tokens.
struct BlockShape {
    int head_dim;
    int operand;  // an hsb_operand
    int dtype;    // an hsb_dtype
    int axis;     // an hsb_axis: of V

    // The same as of the operand whose groups these are: V's along head_dim are as K's.
    BlockShape of_groups() const { return {head_dim, axis == HSB_AXIS_HEAD_DIM ? HSB_KEY : operand, dtype, axis}; }
};

// What a pruner that was fitted to the tensor says of a block: hsb_compress_params, hsbench/cache/fit.py.
struct BlockFit {
    int order;                     // an hsb_order
    const float *shift;            // [head_dim], or NULL
    const std::uint16_t *weights;  // K: [head_dim]; V: one for each of the block's tokens; or NULL
    const float *scale;            // [head_dim], of narrow elements; or NULL
};

// ---- Loss ----------------------------------------------------------------------------------------------------------
// An exact sum of magnitudes, in units of 2^-133 (the smallest subnormal of a type with fp32's exponents and 7 bits of
// mantissa; other types' are multiples of it), least significant limb first. 4096 elements below 2^128 stay below 2^273.
struct Loss {
    static constexpr int kLowestExponent = -133;
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

constexpr int kDoubleBits = 53;  // of its mantissa, the leading one included
constexpr int kSumBits = 12;     // that the sum of what a block drops, at most 4096 elements, has more than an element

// Whether a sum is exact in double whatever the elements and the order of summation: all are multiples of the smallest
// subnormal, and here the largest is not too many of it. fp16: 4096 multiples of 2^-24 below 2^16 need 52 bits.
constexpr bool is_always_exact(int dtype) {
    return kSumBits + (1 << exponent_bits(dtype)) - 2 + mantissa_bits(dtype) <= kDoubleBits;
}

// Whether this sum is. With E the largest exponent and e the smallest, 4096 numbers below 2^(E+1) in units of the lowest
// bit of the smallest, 2^(e - mantissa bits), need 13 + mantissa bits + E - e. Subnormals do not count on, because a
// thread of the caller's may flush them to zero.
constexpr bool is_exact(const DroppedSum &dropped, int dtype) {
    const int mantissa = mantissa_bits(dtype), smallest = dropped.smallest >> mantissa;
    return is_always_exact(dtype) || dropped.smallest > dropped.largest ||
           (smallest >= 1 && kSumBits + 1 + mantissa + (dropped.largest >> mantissa) - smallest <= kDoubleBits);
}

// The same sum for any block, element by element: mantissas are added up per exponent, then joined.
Loss exact_loss(const std::uint16_t *block, BlockShape shape);

// ---- Kernels -------------------------------------------------------------------------------------------------------
// `block` is [64, head_dim], contiguous.
template <class Isa>
DroppedSum sum_dropped(const std::uint16_t *block, BlockShape shape);

// Packs a block into a page of a kind and returns the largest magnitude bits seen, by which the caller knows whether to
// look for a NaN or infinity.
template <class Isa>
std::uint16_t pack_page(hsb_block_kind kind, const std::uint16_t *block, std::byte *page, BlockShape shape);

// Under a pruner, a block [64, head_dim] goes through two scratch blocks. `stored`: as it is stored, of `tokens` that
// there are; the missing ones are zero. `scores`: what 2:4 chooses by, where there are weights; may be NULL. Returns
// the largest magnitude bits of x.
template <class Isa>
std::uint16_t store_block(const std::uint16_t *x, int tokens, const BlockFit &fit, BlockShape shape,
                          std::uint16_t *stored, std::uint16_t *scores);

// Packs what is stored into a page of a kind; what stays is chosen by `scores`, which may be `stored` itself, and gets
// its share of what goes.
template <class Isa>
void pack_chosen_page(hsb_block_kind kind, const std::uint16_t *stored, const std::uint16_t *scores, float fold,
                      std::byte *page, BlockShape shape);

// Narrow pages are made of 16-bit ones: K's of a block in units of its scales, of which a page no longer tells the channels,
// and so V's in groups along head_dim; others of V, whose folds are of what is stored, are brought to units as they are made
// narrow.
//
// What is stored, [64, head_dim], in units of its scales: as its own type, in which all is exact that e4m3 does not take for
// zero or its largest; or as wide pages have it, saturating.
template <class Isa>
void scale_block(const std::uint16_t *stored, const BlockFit &fit, BlockShape shape, std::uint16_t *units);
template <class Isa>
void widen_block(const std::uint16_t *stored, const BlockFit &fit, BlockShape shape, std::uint16_t *units);

// A page of int4 of one of the block's type, as it is stored: units come first, in fp32, then scales of few values.
template <class Isa>
void quantise_page(hsb_block_kind kind, const std::byte *page, const BlockFit &fit, BlockShape shape, std::byte *out);

// A page of e4m3 of one of the block's type, of K and of V in groups along head_dim in units of its scales.
template <class Isa>
void narrow_page(hsb_block_kind kind, const std::byte *page, const BlockFit &fit, BlockShape shape, std::byte *narrow);

}  // namespace hsb::cpu
