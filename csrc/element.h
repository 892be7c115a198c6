// What there is to know of an element type but its arithmetic, for both libraries. All are 16-bit floats as IEEE 754
// lays them out: a sign, exponent bits, mantissa bits. So the number of mantissa bits says everything else.
#pragma once

#include <cstdint>
#include <string>

#include "params.h"

namespace hsb {

struct Element {
    hsb_dtype dtype;
    const char *name;
    int mantissa_bits;
};
constexpr Element kElements[] = {{HSB_FP16, "fp16", 10}, {HSB_BF16, "bf16", 7}};

constexpr bool is_element(int dtype) {
    for (const Element &element : kElements)
        if (element.dtype == dtype) return true;
    return false;
}

// "fp16 or bf16", for messages.
inline std::string element_names() {
    std::string names;
    for (const Element &element : kElements) names += (names.empty() ? "" : " or ") + std::string(element.name);
    return names;
}

// The rest is of a dtype that is_element().
constexpr int mantissa_bits(int dtype) {
    int bits = 0;
    for (const Element &element : kElements)
        if (element.dtype == dtype) bits = element.mantissa_bits;
    return bits;
}

constexpr int exponent_bits(int dtype) { return 15 - mantissa_bits(dtype); }

// As a magnitude, without its sign: what is not below it is no finite number.
constexpr std::uint16_t infinity_bits(int dtype) {
    return static_cast<std::uint16_t>(0x7fff >> mantissa_bits(dtype) << mantissa_bits(dtype));
}

// The smallest subnormal is 2 to it, and all numbers are multiples of that.
constexpr int lowest_exponent(int dtype) { return 2 - (1 << (exponent_bits(dtype) - 1)) - mantissa_bits(dtype); }

// Whether its largest number is near fp32's, so that sums of few may overflow.
constexpr bool reaches_as_far_as_fp32(int dtype) { return exponent_bits(dtype) == 8; }

static_assert(infinity_bits(HSB_FP16) == 0x7c00 && lowest_exponent(HSB_FP16) == -24);
static_assert(infinity_bits(HSB_BF16) == 0x7f80 && lowest_exponent(HSB_BF16) == -133);

}  // namespace hsb
