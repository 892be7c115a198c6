// 2 of 4 by magnitude: two groups of 4 at a time, one in the low and one in the high half of each register.
//
// On the bits, whatever the type: a magnitude is a 16-bit float without its sign; its bits are ordered like its value, for fp16
// and bf16 alike. Of two magnitudes a and b, bit 15 of (a + 0x8000 - b) says whether a >= b, in both halves at once: no borrow
// crosses over. Where the type is known, one comparison of two pairs of magnitudes gives masks: half the instructions.
#pragma once

#include <cstdint>

#include "cuda/element.cuh"
#include "cuda/ptx/bytes.cuh"

namespace hsb::cuda {

constexpr std::uint32_t kMagnitudes = 0x7fff7fff;
constexpr std::uint32_t kSigns = 0x80008000;

// Added to two magnitudes, this sets a sign bit exactly where one is an infinity or a NaN.
__device__ __forceinline__ std::uint32_t non_finite_carry(std::uint32_t infinity) {
    return (0x8000 - infinity) * 0x10001;
}

// Sets a sign bit where one of 8 values is not finite; the other bits mean nothing.
__device__ __forceinline__ std::uint32_t overflow_of(uint4 x, std::uint32_t carry) {
    return ((x.x & kMagnitudes) + carry) | ((x.y & kMagnitudes) + carry) | ((x.z & kMagnitudes) + carry) |
           ((x.w & kMagnitudes) + carry);
}

// A block's row of 8 values as two groups: x[i] holds element i of the first in its low, of the second in its high half.
__device__ __forceinline__ void split_groups(uint4 row, std::uint32_t (&x)[4]) {
    x[0] = ptx::low_halves(row.x, row.z);
    x[1] = ptx::high_halves(row.x, row.z);
    x[2] = ptx::low_halves(row.y, row.w);
    x[3] = ptx::high_halves(row.y, row.w);
}

struct KeptPairs {
    std::uint32_t low, high;  // kept values of the group in the low halves, and of that in the high halves
    std::uint32_t codes;      // their positions, 4 bits a group: at bit `place` and at bit 16 + `place`
};

__device__ __forceinline__ std::uint32_t majority(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
    return (a & b) | (a & c) | (b & c);
}

// One of two bits, by the bits of a mask.
__device__ __forceinline__ std::uint32_t select(std::uint32_t mask, std::uint32_t a, std::uint32_t b) {
    return (a & mask) | (b & ~mask);
}

// Two groups pruned: in the low and in the high halves.
struct Pruned {
    std::uint32_t kept[2], dropped[2];  // in order
    std::uint32_t codes;                // positions, 4 bits a group, at the places asked for
    std::uint32_t stays[4];             // masks: whether each of the four is kept

    __device__ __forceinline__ KeptPairs pairs() const {
        return {ptx::low_halves(kept[0], kept[1]), ptx::high_halves(kept[0], kept[1]), codes};
    }

    // What is kept in its place, and zeros in that of what is not: of what was pruned, where nothing was folded into it; and of
    // `kept`, whatever became of it.
    __device__ __forceinline__ void in_place(std::uint32_t (&to)[4], const std::uint32_t (&x)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = x[i] & stays[i];
    }
    __device__ __forceinline__ void spread(std::uint32_t (&to)[4]) const {
        to[0] = kept[0] & stays[0];
        to[1] = select(stays[0], kept[1], kept[0]) & stays[1];
        to[2] = select(stays[3], kept[0], kept[1]) & stays[2];
        to[3] = kept[1] & stays[3];
    }
};

// Codes of groups: of masks, in each group's four bits, whether the first three are kept.
__device__ __forceinline__ std::uint32_t codes_of_masks(const std::uint32_t (&stays)[3]) {
    const std::uint32_t keep3 = stays[0] ^ stays[1] ^ stays[2];  // two are
    const std::uint32_t first = ~stays[0] & (stays[1] ^ 0x22222222u) & 0x33333333u;
    return first | ((keep3 | (stays[2] ^ 0x44444444u)) & 0xccccccccu);
}

// Keeps of each group of x the two whose `by`, of type T, is largest; ties keep the lower index. The codes are at bits
// `low_place` and 16 + `high_place`.
template <class T, int low_place, int high_place = low_place>
__device__ __forceinline__ Pruned prune_2_of_4(const std::uint32_t (&x)[4], const std::uint32_t (&by)[4]) {
    static_assert(low_place >= 0 && low_place <= 12 && high_place >= 0 && high_place <= 12, "4 bits within a half");
    using E = Element<T>;
    const std::uint32_t beats01 = E::is_ahead(by[0], by[1]), beats02 = E::is_ahead(by[0], by[2]);
    const std::uint32_t beats03 = E::is_ahead(by[0], by[3]), beats12 = E::is_ahead(by[1], by[2]);
    const std::uint32_t beats13 = E::is_ahead(by[1], by[3]), beats23 = E::is_ahead(by[2], by[3]);
    // Kept: ahead of at least two of the other three.
    const std::uint32_t keep0 = majority(beats01, beats02, beats03), keep1 = majority(~beats01, beats12, beats13);
    const std::uint32_t keep2 = majority(~beats02, ~beats12, beats23), keep3 = majority(~beats03, ~beats13, ~beats23);

    // The first is at 0, 1 or 2, the second at 1, 2 or 3.
    constexpr std::uint32_t kBit = 1u << low_place | 0x10000u << high_place;
    const std::uint32_t codes = (~keep0 & keep1 & kBit) | (~keep0 & ~keep1 & 2 * kBit) | ((keep3 | ~keep2) & 4 * kBit) |
                                ((keep3 | keep2) & 8 * kBit);
    return {{select(keep0, x[0], select(keep1, x[1], x[2])), select(keep3, x[3], select(keep2, x[2], x[1]))},
            {select(keep0, select(keep1, x[2], x[1]), x[0]), select(keep3, select(keep2, x[1], x[2]), x[3])},
            codes,
            {keep0, keep1, keep2, keep3}};
}

// The same by the bits.
template <int place>
__device__ __forceinline__ KeptPairs keep_2_of_4(const std::uint32_t (&x)[4]) {
    static_assert(place >= 0 && place <= 12, "4 bits within a half");
    std::uint32_t m[4], signed_m[3];
#pragma unroll
    for (int i = 0; i < 4; ++i) m[i] = x[i] & kMagnitudes;
#pragma unroll
    for (int i = 0; i < 3; ++i) signed_m[i] = x[i] | kSigns;
    // Bits 15 and 31 of beats<i><j>: i stays ahead of j. The other bits mean nothing, down to the masks below.
    const std::uint32_t beats01 = signed_m[0] - m[1], beats02 = signed_m[0] - m[2], beats03 = signed_m[0] - m[3];
    const std::uint32_t beats12 = signed_m[1] - m[2], beats13 = signed_m[1] - m[3], beats23 = signed_m[2] - m[3];
    // Kept: ahead of at least two of the other three.
    const std::uint32_t keep0 = majority(beats01, beats02, beats03), keep1 = majority(~beats01, beats12, beats13);
    const std::uint32_t keep2 = majority(~beats02, ~beats12, beats23), keep3 = majority(~beats03, ~beats13, ~beats23);

    const std::uint32_t all0 = ptx::spread_signs(keep0), all1 = ptx::spread_signs(keep1);
    const std::uint32_t all2 = ptx::spread_signs(keep2), all3 = ptx::spread_signs(keep3);
    const std::uint32_t first = select(all0, x[0], select(all1, x[1], x[2]));
    const std::uint32_t second = select(all3, x[3], select(all2, x[2], x[1]));

    // The first is at 0, 1 or 2, the second at 1, 2 or 3.
    const std::uint32_t first_is_odd = ~keep0 & keep1 & kSigns, first_is_2 = ~keep0 & ~keep1 & kSigns;
    const std::uint32_t second_is_odd = (keep3 | ~keep2) & kSigns, second_is_above_1 = (keep3 | keep2) & kSigns;
    const std::uint32_t codes = first_is_odd >> (15 - place) | first_is_2 >> (14 - place) |
                                second_is_odd >> (13 - place) | second_is_above_1 >> (12 - place);
    return {ptx::low_halves(first, second), ptx::high_halves(first, second), codes};
}

// What keep_2_of_4 would drop: two magnitudes a group, the smaller in `first`.
__device__ __forceinline__ void drop_2_of_4(const std::uint32_t (&x)[4], std::uint32_t &first, std::uint32_t &second) {
    std::uint32_t m[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) m[i] = x[i] & kMagnitudes;
    const std::uint32_t low01 = __vminu2(m[0], m[1]), high01 = __vmaxu2(m[0], m[1]);
    const std::uint32_t low23 = __vminu2(m[2], m[3]), high23 = __vmaxu2(m[2], m[3]);
    first = __vminu2(low01, low23);
    second = __vminu2(__vmaxu2(low01, low23), __vminu2(high01, high23));
}

// Notes the first non-finite element of x[begin .. begin + count): lane l of `lanes` looks at every lanes-th. Rare.
inline __device__ __noinline__ void note_non_finite(const std::uint16_t *x, std::int64_t begin, int count,
                                                    std::uint32_t infinity, int lane, int lanes,
                                                    unsigned long long *found) {
    for (int i = lane; i < count; i += lanes) {
        if ((x[begin + i] & 0x7fffu) < infinity) continue;
        atomicMin(found, static_cast<unsigned long long>(begin + i));
        return;
    }
}

}  // namespace hsb::cuda
