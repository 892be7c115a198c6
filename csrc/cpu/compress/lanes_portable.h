// 8 lanes of 16 bits in an array: plain C++ for any processor, which compilers turn into what SIMD they have.
#pragma once

#include <cstddef>

#include "cpu/simd/portable.h"

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

    // Integers all the way: fp16 in units of 2^-24; bf16 as doubles put together from their bits.
    struct Sum {
        std::uint64_t fixed = 0;
        double real = 0;

        void add(Half x, Fp16) {
            for (std::uint16_t m : x.lane) {
                const unsigned exponent = m >> 10;
                fixed += exponent ? static_cast<std::uint64_t>((m & 0x3ff) | 0x400) << (exponent - 1) : m;
            }
        }
        void add(Half x, Bf16) {
            for (std::uint16_t m : x.lane) real += to_float(m, Bf16{});
        }
        double total() const { return real + static_cast<double>(fixed) * 0x1p-24; }
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
