// What both kinds of int4 pages (int4_page.cuh) take to be packed (compress/pack.cuh): a block's scales, values as nibbles, and
// words that lanes put together. hsbench/cache/int4.py is the definition, met bit for bit.
//
// A nibble's magnitude is the floor of |x| / scale, 7 at most. x has 11 bits, and scale times a whole number up to 7 has 14: so
// x / scale is a whole number, or at least 2^-14 of itself below the next one. Hence no division: the floor of x times an
// inverse that is a little too large, by 2^-17, is the same.
//
// K's are in int4_keys_pack.cuh, V's in int4_values_pack.cuh and, in groups along head_dim, in int4_rows_pack.cuh.
#pragma once

#include <cstdint>

#include "cuda/compress/strip.cuh"
#include "cuda/element.cuh"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/global.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/shared.cuh"
#include "int4_page.cuh"

namespace hsb::cuda {

constexpr int kInt4RoomBytes = 832;  // of a warp

// A scale, of values whose largest magnitude, in units of their channels' scales, is given: one, or two in the halves of bits.
// Inverses are a little too large, and in quotients' units; just above 0 where a scale is 0, so that signs stay.
constexpr float kInt4Step = 32.0f;  // of quotients, below
struct Int4ScalePair {
    std::uint32_t bits;  // fp16
    float2 inverse;

    __device__ Int4ScalePair(float first, float second) {
        bits = ptx::fp16x2_saturated(scale_of(first), scale_of(second));
        const float2 scale = Element<OfE4m3>::unpack(bits);
        inverse = {inverse_of(scale.x), inverse_of(scale.y)};
    }

private:
    // largest / 7.5, rounded: a quotient from the rounded inverse, corrected by what it leaves, is the nearest, as long as
    // nothing underflows, where fp16 has 0 whatever it is.
    static __device__ float scale_of(float largest) {
        constexpr float kLargest = 7.5f, kInverse = 1.0f / kLargest;
        const float quotient = __fmul_rn(largest, kInverse);
        return __fmaf_rn(__fmaf_rn(-quotient, kLargest, largest), kInverse, quotient);
    }
    static __device__ float inverse_of(float scale) {
        constexpr float kTooLarge = kInt4Step * (1.0f + 0x1p-17f), kTiny = 0x1p-100f;
        return scale > 0.0f ? ptx::reciprocal_of_normal(scale) * kTooLarge : kTiny;
    }
};

// The floors of two quotients x / scale, each -8 to 7, in the low nibbles of halves, 8 more than they are; x in units of its
// channel's scale. Each quotient is added to 7 steps of 32 below fp16's largest number, where numbers of fp16 are such steps and
// those of fp32 far finer: rounded down to the one and cut to the other is rounded down. So one instruction cuts two, and those
// above 7, too; another raises what is below -8.
constexpr float kInt4Zero = 65504.0f - 7 * kInt4Step;
__device__ __forceinline__ std::uint32_t int4_floors(float low, float high) {
    return ptx::fp16x2_towards_zero(low, high);
}
__device__ __forceinline__ float int4_quotient(float x, float inverse) { return __fmaf_rd(x, inverse, kInt4Zero); }
__device__ __forceinline__ std::uint32_t int4_in_range(std::uint32_t floors) {
    constexpr std::uint32_t kLeast = 0x7bf07bf0u;  // 65504 - 15 * 32
    return ptx::larger_fp16x2(floors, kLeast);
}

// Of four values' floors in the low nibbles of bytes, what a row has of a word: its registers' first halves and then the second
// ones, in every other nibble, of row i or, `below`, i + 8 of a strip. The other nibbles mean nothing.
__device__ __forceinline__ std::uint32_t int4_half_word(std::uint32_t bytes, bool below) {
    return __funnelshift_l(bytes, bytes, below ? 8 : 4);
}
__device__ __forceinline__ std::uint32_t int4_half_word(std::uint32_t first, std::uint32_t second, bool below) {
    return int4_half_word(ptx::permute_bytes<0x6420>(int4_in_range(first), int4_in_range(second)), below);
}
// The word of a row's half, `below` or not, and the other row's: of a step 8 + n a magnitude n, of 8 - n - 1 the same and a sign.
__device__ __forceinline__ std::uint32_t int4_word(std::uint32_t half, std::uint32_t other, bool below) {
    const std::uint32_t mine = below ? 0x0f0f0f0fu : 0xf0f0f0f0u, floors = (half & mine) | (other & ~mine);
    const std::uint32_t negative = ~floors & 0x88888888u;
    const std::uint32_t magnitudes = (floors ^ (negative >> 3) * 7u) & 0x77777777u;
    return magnitudes | ptx::permute_bytes<0x2103>(negative, negative);
}

// Where inverses stand one after the other in shared memory, that of the position that a code says at bit `bit`: of entries of
// `Bytes`, from an address of which their four have no bit.
template <int Bytes>
__device__ __forceinline__ std::uint32_t int4_entry(std::uint32_t four, std::uint32_t code, int bit) {
    constexpr int kPlace = Bytes == 8 ? 3 : 2;
    static_assert(Bytes == 1 << kPlace, "4 or 8 bytes");
    return ((bit < kPlace ? code << (kPlace - bit) : code >> (bit - kPlace)) & 3u << kPlace) | four;
}

// Of four values in two groups, in the low and in the high halves: those that stay, by the groups' codes at bit `place` of the
// halves.
__device__ __forceinline__ void int4_kept(std::uint32_t (&kept)[2], const std::uint32_t (&x)[4], std::uint32_t codes,
                                          int place) {
    const auto mask = [&](int bit) { return ptx::spread_signs(codes << (15 - place - bit)); };
    const auto select = [](std::uint32_t by, std::uint32_t a, std::uint32_t b) { return (a & by) | (b & ~by); };
    kept[0] = select(mask(1), x[2], select(mask(0), x[1], x[0]));
    kept[1] = select(mask(3), select(mask(2), x[3], x[2]), x[1]);
}

// The inverse of what 2:4 keeps, zeros elsewhere: value `i` of two groups, by the codes at bit `place` of the halves.
__device__ __forceinline__ std::uint32_t int4_spread(const std::uint32_t (&kept)[2], std::uint32_t codes, int place,
                                                     int i) {
    const auto mask = [&](int bit) { return ptx::spread_signs(codes << (15 - place - bit)); };
    const auto is = [&](int bit, int position) {
        return (position & 1 ? mask(bit) : ~mask(bit)) & (position & 2 ? mask(bit + 1) : ~mask(bit + 1));
    };
    return (kept[0] & is(0, i)) | (kept[1] & is(2, i));
}

// The word of codes (int4_page.cuh) of rows i and i + 8: of 8 groups of a row of which every other one, from `odd` on, counts.
__device__ __forceinline__ std::uint32_t int4_codes_of_rows(std::uint32_t row, std::uint32_t below, bool odd) {
    const auto of_row = [&](std::uint32_t groups) {
        const std::uint32_t mine = groups >> (odd ? 4 : 0) & 0x0f0f0f0fu;
        return ptx::permute_bytes<0x4140>(mine, 0) | ptx::permute_bytes<0x4342>(mine, 0) << 4;
    };
    const std::uint32_t positions = of_row(row) | of_row(below) << 8;
    // Of positions first < second the pattern first + second - 1, and 1 more where the first is not 0.
    const std::uint32_t first = positions & 0x33333333u, second = positions >> 2 & 0x33333333u;
    return first + second + ((first | first >> 1) & 0x11111111u) - 0x11111111u;
}

// Stores the codes of four strips and a pair. word(strip): of the lane's.
template <class Shape, class Word>
__device__ __forceinline__ void store_int4_codes(unsigned char *page, int four, int lane, Word &&word) {
    const std::uint32_t last = word(3);
#pragma unroll
    for (int i = 0; i < 3; ++i)
        ptx::store_4(page + int4_codes<Shape>(four, i, lane), word(i) | (last >> i & 0x11111111u) << 3);
}

}  // namespace hsb::cuda
