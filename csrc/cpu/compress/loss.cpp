#include "compress.h"

#include <cstring>
#include <utility>

#include "cpu/page.h"
#include "cpu/simd/half.h"

namespace hsb::cpu {
namespace {

// loss += x * 2^position, for x < 2^63 and a sum that fits.
void add_at(Loss &loss, std::uint64_t x, int position) {
    int i = position / 64;
    const int shift = position % 64;
    std::uint64_t carry = x << shift;
    std::uint64_t next = shift ? x >> (64 - shift) : 0;
    for (; i < Loss::kLimbs && (carry | next); ++i) {
        loss.limb[i] += carry;
        carry = next + (loss.limb[i] < carry);
        next = 0;
    }
}

}  // namespace

bool less(const Loss &a, const Loss &b) {
    for (int i = Loss::kLimbs - 1; i > 0; --i)
        if (a.limb[i] != b.limb[i]) return a.limb[i] < b.limb[i];
    return a.limb[0] < b.limb[0];
}

Loss loss_of(double sum) {
    static_assert(sizeof(double) == 8, "IEEE 754 binary64");
    Loss loss{};
    std::uint64_t bits;
    std::memcpy(&bits, &sum, 8);
    const int exponent = static_cast<int>(bits >> 52);
    if (exponent == 0 || exponent == 0x7ff) return loss;  // zero; or a block that will be refused as not finite
    const std::uint64_t mantissa = (bits & ((std::uint64_t{1} << 52) - 1)) | std::uint64_t{1} << 52;
    const int position = exponent - 1075 - Loss::kLowestExponent;  // of the mantissa's lowest bit
    if (position >= 0)
        add_at(loss, mantissa, position);
    else
        loss.limb[0] = mantissa >> -position;  // a multiple of the unit: only zeros are shifted out
    return loss;
}

template <class Type>
Loss exact_loss_of(const std::uint16_t *block, int head_dim, int operand) {
    constexpr int mantissa = mantissa_bits(Type::dtype), exponents = 1 << exponent_bits(Type::dtype);
    constexpr int lowest = lowest_exponent(Type::dtype) - Loss::kLowestExponent;
    static_assert(lowest >= 0, "a multiple of the unit");
    std::uint64_t sums[exponents] = {};                    // of mantissas, per exponent; each has few bits
    const int stride = operand == HSB_KEY ? 1 : head_dim;  // between the elements of a group
    for (int group = 0; group < kBlock * head_dim / 4; ++group) {
        const std::uint16_t *x =
            block + (operand == HSB_KEY ? 4 * group : group / head_dim * 4 * head_dim + group % head_dim);
        std::uint16_t m[4];
        for (int i = 0; i < 4; ++i) m[i] = x[i * stride] & 0x7fff;
        // The two smallest; which of two equal ones does not matter to a sum.
        if (m[1] < m[0]) std::swap(m[0], m[1]);
        if (m[3] < m[2]) std::swap(m[2], m[3]);
        const std::uint16_t first = m[0] < m[2] ? m[0] : m[2];
        const std::uint16_t second = m[0] < m[2] ? (m[1] < m[2] ? m[1] : m[2]) : (m[0] < m[3] ? m[0] : m[3]);
        for (const std::uint16_t dropped : {first, second}) {
            constexpr int one = 1 << mantissa;
            const int exponent = dropped >> mantissa;
            sums[exponent] += (dropped & (one - 1)) | (exponent ? one : 0);
        }
    }
    Loss loss{};
    for (int exponent = 0; exponent < exponents; ++exponent)
        add_at(loss, sums[exponent], lowest + (exponent ? exponent - 1 : 0));
    return loss;
}

Loss exact_loss(const std::uint16_t *block, BlockShape shape) {
    return with_type(shape.dtype,
                     [&](auto type) { return exact_loss_of<decltype(type)>(block, shape.head_dim, shape.operand); });
}

}  // namespace hsb::cpu
