// Scalar conversions between 16-bit floats and fp32, by their bits; exact one way, round to nearest even the other. And from
// and to e4m3, which pages may hold.
#pragma once

#include <cstdint>
#include <cstring>

#include "params.h"

namespace hsb::cpu {

// Element types as tags: kernels are templates on one of these. What is known of one besides is in element.h. Value: its
// bits; unit: what a loaded value counts; is_narrow: whether blocks may stay wide beside pages of it.
struct Fp16 {
    static constexpr int dtype = HSB_FP16;
    static constexpr bool is_narrow = false;
    using Value = std::uint16_t;
    static constexpr float unit = 1.0f;
};
struct Bf16 {
    static constexpr int dtype = HSB_BF16;
    static constexpr bool is_narrow = false;
    using Value = std::uint16_t;
    static constexpr float unit = 1.0f;
};
// 4 bits of exponent, 3 of fraction. With its sign moved away from the rest it is an fp16 that is 2^8 too small, subnormal
// numbers too: loads leave it at that, for it is a scale that takes it to what it stands for. Wide: fp16 beside it, which
// loads make as much smaller.
struct WideFp16 {
    using Value = std::uint16_t;
    using Stored = Fp16;  // whose bits it has
    static constexpr float unit = 256.0f;
};
struct E4m3 {
    using Value = std::uint8_t;
    using Wide = WideFp16;
    static constexpr bool is_narrow = true;
    static constexpr float unit = Wide::unit;
};

// Digits of 4 bits: +-1/2, 3/2, .. 15/2 in units of scales in the page (kinds/int4/page.h).
struct Int4 {
    using Wide = WideFp16;
    using Scale = Fp16;  // what a page's scales are
    static constexpr bool is_narrow = true;
    static constexpr float unit = Wide::unit;
};

// Whether a value is the upper half of the float that it stands for.
template <class Type>
constexpr bool kIsUpperHalf = false;
template <>
inline constexpr bool kIsUpperHalf<Bf16> = true;

// Calls function(Fp16{} | Bf16{}) for an hsb_dtype that has been checked, and returns what it returns. Always inline: a
// function more between a kernel and its parts, and GCC inlines others of them.
template <class Function>
[[gnu::always_inline]] inline decltype(auto) with_type(int dtype, Function &&function) {
    if (dtype == HSB_FP16) return function(Fp16{});
    return function(Bf16{});
}

// Calls function(tag) of what pages hold: an hsb_stored that has been checked, of tensors of a type.
template <class Type, class Function>
[[gnu::always_inline]] inline decltype(auto) with_stored(int stored, Function &&function) {
    if (stored == HSB_STORED_FP8) return function(E4m3{});
    if (stored == HSB_STORED_INT4) return function(Int4{});
    return function(Type{});
}

// What a loaded value counts of pages that hold an hsb_stored.
inline float unit_of(int stored) { return stored == HSB_STORED_16 ? 1.0f : WideFp16::unit; }

inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline float to_float(std::uint16_t h, Bf16) { return float_of(static_cast<std::uint32_t>(h) << 16); }

inline float to_float(std::uint16_t h, Fp16) {
    const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16;
    const std::uint32_t rest = h & 0x7fff;
    if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    // Scaling by 2^112 moves the exponent from half's bias to float's and makes subnormals normal.
    return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}

inline float to_float(std::uint16_t h, WideFp16) { return to_float(h, Fp16{}) / WideFp16::unit; }

inline float to_float(std::uint8_t x, E4m3) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x & 0x80) << 24;
    return float_of(sign | bits_of(float_of(static_cast<std::uint32_t>(x & 0x7f) << 20) * 0x1p112f));
}

// Saturating. No branch, so that a loop of it becomes SIMD.
inline std::uint8_t from_float(float x, E4m3) {
    const std::uint32_t sign = bits_of(x) >> 24 & 0x80;
    const float absolute = float_of(bits_of(x) & 0x7fffffff);
    const float magnitude = absolute < 448.0f ? absolute : 448.0f;
    const std::uint32_t bits = bits_of(magnitude);
    const std::uint32_t normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120u << 3);
    const std::uint32_t subnormal = bits_of(magnitude + 0x1p14f) - bits_of(0x1p14f);  // 2^14 counts in 2^-9
    return static_cast<std::uint8_t>(sign | (magnitude < 0x1p-6f ? subnormal : normal));
}

inline std::uint16_t from_float(float x, Bf16) {
    const std::uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline std::uint16_t from_float(float x, Fp16) {
    const std::uint32_t bits = bits_of(x);
    const std::uint16_t sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    const std::uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);
    if (rest >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // 65520 and above
    if (rest < 0x38800000)  // below 2^-14: adding 2^-1 rounds the subnormal into the low bits
        return static_cast<std::uint16_t>(sign | (bits_of(float_of(rest) + 0.5f) - 0x3f000000));
    return static_cast<std::uint16_t>(sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13);
}

}  // namespace hsb::cpu
