// 8 lanes of 16 bits in an array: plain C++ for any processor, which compilers turn into what SIMD they have.
#pragma once

#include <cstddef>
#include <type_traits>

#include "compress.h"
#include "cpu/simd/portable.h"
#include "element.h"

namespace hsb::cpu {

template <class Isa>
struct Lanes;

template <>
struct Lanes<Portable> {
    static constexpr int width = 8;
    struct Half {
        std::uint16_t lane[width];
    };
    using Flag = Half;  // all bits of a lane alike, so that a Flag is a Mask too
    using Mask = Half;

    template <class Function>
    static Half each(Function &&function) {
        Half y;
        for (int i = 0; i < width; ++i) y.lane[i] = static_cast<std::uint16_t>(function(i));
        return y;
    }

    static Half zero() { return set(0); }
    static Half set(std::uint16_t x) {
        return each([&](int) { return x; });
    }
    static Half load(const std::uint16_t *p) {
        return each([&](int i) { return p[i]; });
    }
    static void store(std::uint16_t *p, Half x) { std::memcpy(p, x.lane, sizeof x.lane); }
    static Half bit_and(Half a, Half b) {
        return each([&](int i) { return a.lane[i] & b.lane[i]; });
    }
    static Half min(Half a, Half b) {
        return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    static Half max(Half a, Half b) {
        return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    static Half sub(Half a, Half b) {
        return each([&](int i) { return a.lane[i] - b.lane[i]; });
    }
    static Half shift_right(Half a, unsigned n) {
        return each([&](int i) { return a.lane[i] >> n; });
    }
    static Half select(Mask yes, Half a, Half b) {
        return each([&](int i) { return (a.lane[i] & yes.lane[i]) | (b.lane[i] & ~yes.lane[i]); });
    }

    static Flag less(Half a, Half b) {
        return each([&](int i) { return a.lane[i] < b.lane[i] ? 0xffff : 0; });
    }
    // At least two of three; a name says which of them are taken inverted.
    static Flag majority(Flag a, Flag b, Flag c) {
        return each([&](int i) { return (a.lane[i] & b.lane[i]) | ((a.lane[i] | b.lane[i]) & c.lane[i]); });
    }
    static Flag majority_n1(Flag a, Flag b, Flag c) { return majority(inverse(a), b, c); }
    static Flag majority_n2(Flag a, Flag b, Flag c) { return majority(inverse(a), inverse(b), c); }
    static Flag majority_n3(Flag a, Flag b, Flag c) { return inverse(majority(a, b, c)); }
    static Mask mask(Flag a) { return a; }
    // bits >> 1, with the flag as the new top bit.
    static Half shift_in(Half bits, Flag flag) {
        return each([&](int i) { return bits.lane[i] >> 1 | (flag.lane[i] & 0x8000); });
    }

    static std::uint16_t largest(Half x) {
        std::uint16_t y = 0;
        for (std::uint16_t lane : x.lane) y = lane > y ? lane : y;
        return y;
    }
    static std::uint16_t smallest(Half x) {
        std::uint16_t y = 0xffff;
        for (std::uint16_t lane : x.lane) y = lane < y ? lane : y;
        return y;
    }

    // y[j] = element j of each of `width` rows: row l's becomes lane l.
    static void transposed(const std::uint16_t *x, std::ptrdiff_t stride, Half (&y)[8]) {
        for (int j = 0; j < 8; ++j) y[j] = each([&](int l) { return x[l * stride + j]; });
    }
    // Elements j of the groups of 4 in 32 successive elements.
    static void grouped(const std::uint16_t *x, Half (&y)[4]) {
        for (int j = 0; j < 4; ++j) y[j] = each([&](int l) { return x[4 * l + j]; });
    }

    // Integers all the way, in units of the type's smallest subnormal, where they hold the sum; else doubles put
    // together from bits.
    template <class Type>
    struct Sum {
        static constexpr bool fixed = is_always_exact(Type::dtype);
        static constexpr unsigned mantissa = mantissa_bits(Type::dtype);

        std::conditional_t<fixed, std::uint64_t, double> sum = 0;

        void add(Half x) {
            for (std::uint16_t m : x.lane) {
                if constexpr (fixed) {
                    constexpr std::uint64_t one = 1u << mantissa;
                    const unsigned exponent = m >> mantissa;
                    sum += exponent ? ((m & (one - 1)) | one) << (exponent - 1) : m;
                } else {
                    sum += to_float(m, Type{});
                }
            }
        }
        double total() const {
            if constexpr (fixed) {
                constexpr double units =
                    static_cast<double>(std::uint64_t{1} << -lowest_exponent(Type::dtype));  // in 1
                return static_cast<double>(sum) * (1 / units);
            } else {
                return sum;
            }
        }
    };

    // Bit i: whether m[i] >= t, for 64 magnitudes.
    static std::uint64_t at_least(const Half (&m)[8], std::uint16_t t) {
        std::uint64_t bits = 0;
        for (int part = 0; part < 8; ++part)
            for (int i = 0; i < width; ++i)
                bits |= static_cast<std::uint64_t>(reaches(m[part].lane[i], t)) << (part * width + i);
        return bits;
    }
    static int count_at_least(const Half (&m)[8], std::uint16_t t) {
        Half counts = zero();  // per lane
        for (const Half &part : m) counts = each([&](int i) { return counts.lane[i] + reaches(part.lane[i], t); });
        int count = 0;
        for (std::uint16_t lane : counts.lane) count += lane;
        return count;
    }

    // The `count` lowest set bits of `bits`.
    static std::uint64_t lowest(std::uint64_t bits, int count) {
        std::uint64_t rest = bits;
        for (; count > 0 && rest; --count) rest &= rest - 1;
        return bits ^ rest;
    }

    // Writes x[i] for the set bits i of 64 in ascending order, then zeros up to `padded` values, and nothing beyond.
    static void gather_bits(const std::uint16_t *x, std::uint64_t bits, std::uint16_t *out, int padded,
                            const std::uint16_t *) {
        std::uint16_t packed[65] = {};  // every element is written, and those not kept are written over: no branches
        int kept = 0;
        for (int i = 0; i < 64; ++i) {
            packed[kept] = x[i];
            kept += static_cast<int>(bits >> i & 1);
        }
        packed[kept] = 0;
        std::memcpy(out, packed, static_cast<std::size_t>(padded) * 2);
    }

private:
    // Whether m >= t, without a comparison: for magnitudes the sign of t - 1 - m tells.
    static std::uint16_t reaches(std::uint16_t m, std::uint16_t t) {
        return static_cast<std::uint16_t>(static_cast<std::uint16_t>(t - 1 - m) >> 15);
    }
    static Half inverse(Half x) {
        return each([&](int i) { return ~x.lane[i]; });
    }
};

}  // namespace hsb::cpu
