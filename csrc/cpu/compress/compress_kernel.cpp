#include "compress.h"

#include "cpu/block_kinds.h"
#include "lanes.h"
#include "strip.h"

namespace hsb::cpu {
namespace {

// The two smallest of four, as values.
template <class Isa, class Type>
struct Dropped {
    using L = Lanes<Isa>;
    using Half = typename L::Half;

    typename L::template Sum<Type> sum;
    Half below = L::set(0xffff);  // smallest magnitude - 1, so that zeros wrap round to the top
    Half largest = L::zero();

    void add(const Half (&x)[4]) {
        Half m[4];
        for (int i = 0; i < 4; ++i) m[i] = L::bit_and(x[i], L::set(kMagnitude));
        const Half low01 = L::min(m[0], m[1]), high01 = L::max(m[0], m[1]);
        const Half low23 = L::min(m[2], m[3]), high23 = L::max(m[2], m[3]);
        const Half first = L::min(low01, low23);
        const Half second = L::min(L::max(low01, low23), L::min(high01, high23));
        sum.add(first);
        sum.add(second);
        if (!is_always_exact(Type::dtype)) {
            const Half one = L::set(1);
            below = L::min(below, L::min(L::sub(first, one), L::sub(second, one)));
            largest = L::max(largest, second);
        }
    }
    DroppedSum result() const {
        const std::uint16_t smallest = L::smallest(below);
        return {sum.total(), static_cast<std::uint16_t>(smallest == 0xffff ? smallest : smallest + 1),
                L::largest(largest)};
    }
};

template <class Isa, class Type>
DroppedSum sum_dropped_of(const std::uint16_t *block, int head_dim, int operand) {
    using L = Lanes<Isa>;
    Dropped<Isa, Type> dropped;
    typename L::Half x[4];
    if (operand == HSB_KEY) {  // the order of lanes is free: no transpose, groups are successive elements
        for (int i = 0; i < kBlock * head_dim; i += 4 * L::width) {
            L::grouped(block + i, x);
            dropped.add(x);
        }
    } else {
        for (int token = 0; token < kBlock; token += 4)
            for (int lane = 0; lane < head_dim; lane += L::width) {
                for (int i = 0; i < 4; ++i) x[i] = L::load(block + (token + i) * head_dim + lane);
                dropped.add(x);
            }
    }
    return dropped.result();
}

// A function for each kind: with all of them in one, GCC vectorises worse.
template <class Isa, class Kind>
[[gnu::noinline]] std::uint16_t pack_page_of(Kind kind, const std::uint16_t *block, std::byte *page, BlockShape shape) {
    return shape.operand == HSB_KEY ? pack_page<Isa, HSB_KEY>(kind, block, page, shape.head_dim)
                                    : pack_page<Isa, HSB_VALUE>(kind, block, page, shape.head_dim);
}

}  // namespace

template <class Isa>
DroppedSum sum_dropped(const std::uint16_t *block, BlockShape shape) {
    return with_type(shape.dtype, [&](auto type) {
        return sum_dropped_of<Isa, decltype(type)>(block, shape.head_dim, shape.operand);
    });
}

template <class Isa>
std::uint16_t pack_page(hsb_block_kind kind, const std::uint16_t *block, std::byte *page, BlockShape shape) {
    return with_kind(kind, [&](auto of_kind) { return pack_page_of<Isa>(of_kind, block, page, shape); });
}

template DroppedSum sum_dropped<Isa>(const std::uint16_t *, BlockShape);
template std::uint16_t pack_page<Isa>(hsb_block_kind, const std::uint16_t *, std::byte *, BlockShape);

}  // namespace hsb::cpu
