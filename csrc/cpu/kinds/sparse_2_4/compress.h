// Prunes blocks to 2:4 and packs their pages. Returns the largest magnitude bits seen.
#pragma once

#include "cpu/compress/strip.h"
#include "page.h"

namespace hsb::cpu {

// Prunes one group: slots[0], slots[1] are the two values kept, in order. Their pattern goes into `codes`.
//
// The code of a pattern is 4 d0 + 2 d1 + d2 - 1, with d_i = 1 where element i is dropped; so three bits
// shifted in from the top are a code plus one. Always inline: called, it hands eight vectors over through memory.
template <class Isa>
[[gnu::always_inline]] inline void prune_group(const typename Lanes<Isa>::Half *x,
                                               typename Lanes<Isa>::Half (&slots)[2], typename Lanes<Isa>::Half &codes,
                                               typename Lanes<Isa>::Half &largest) {
    using L = Lanes<Isa>;
    typename L::Half m[4];
    for (int i = 0; i < 4; ++i) m[i] = L::bit_and(x[i], L::set(kMagnitude));
    largest = L::max(largest, L::max(L::max(m[0], m[1]), L::max(m[2], m[3])));
    // b_ij: j beats i. Of equal ones, i does: the lower index.
    const auto b01 = L::less(m[0], m[1]), b02 = L::less(m[0], m[2]), b03 = L::less(m[0], m[3]);
    const auto b12 = L::less(m[1], m[2]), b13 = L::less(m[1], m[3]), b23 = L::less(m[2], m[3]);
    // Dropped: beaten by two of the three others.
    const auto d0 = L::majority(b01, b02, b03), d1 = L::majority_n1(b01, b12, b13);
    const auto d2 = L::majority_n2(b02, b12, b23), d3 = L::majority_n3(b03, b13, b23);
    codes = L::shift_in(L::shift_in(L::shift_in(codes, d2), d1), d0);
    slots[0] = L::select(L::mask(d0), L::select(L::mask(d1), x[2], x[1]), x[0]);
    slots[1] = L::select(L::mask(d3), L::select(L::mask(d2), x[1], x[2]), x[3]);
}

// Portable lanes are arrays, which GCC vectorises in a function of this size, not amid the loops of pack_page.
template <class Isa>
void prune_group_apart(const typename Lanes<Isa>::Half *x, typename Lanes<Isa>::Half (&slots)[2],
                       typename Lanes<Isa>::Half &codes, typename Lanes<Isa>::Half &largest) {
    prune_group<Isa>(x, slots, codes, largest);
}

// Codes of five groups per half word: 0..4, 5..9, 10..14; and 15 by itself.
template <class Isa>  // so that each instruction set has its own write()
struct TileCodes {
    std::uint16_t part[4][kTileLanes];

    void write(std::byte *tile) const {
        auto *low = reinterpret_cast<std::uint32_t *>(tile);
        auto *high = reinterpret_cast<std::uint16_t *>(tile + kHighPatterns);
        for (int lane = 0; lane < kTileLanes; ++lane)
            low[lane] = part[0][lane] | static_cast<std::uint32_t>(part[1][lane]) << 15 |
                        static_cast<std::uint32_t>(part[3][lane]) << 30;
        constexpr int half = kTileLanes / 2;
        for (int lane = 0; lane < half; ++lane)
            for (int h = 0; h < 2; ++h)
                high[2 * lane + h] =
                    static_cast<std::uint16_t>(part[2][half * h + lane] | part[3][half * h + lane] >> 2 << 15);
    }
};

template <class Isa, int operand>
std::uint16_t pack_page(Sparse24Kind, const std::uint16_t *block, std::byte *page, int head_dim) {
    using L = Lanes<Isa>;
    using Half = typename L::Half;
    Half largest = L::zero();
    Ahead ahead(block, head_dim);
    for_each_tile<operand>(head_dim, [&](int lane0, int step0, int tile) __attribute__((always_inline)) {
        std::byte *out = page + tile * Sparse24Kind::tile_bytes;
        auto *values = reinterpret_cast<std::uint16_t *>(out + kPatternBytes);
        TileCodes<Isa> codes;
        for (int lane = 0; lane < kTileLanes; lane += L::width) {
            const auto strip = Strip<Isa, operand>::at(block, head_dim, lane0 + lane, step0);
            Half bits = L::zero();
            for (int group = 0; group < kTileGroups; group += 2) {
                Half x[8];
                strip.load(4 * group, x);
                ahead.template fetch<sizeof x>();
                for (int i = 0; i < 2; ++i) {
                    const int g = group + i;
                    Half slots[2];
                    if constexpr (Isa::isa == HSB_ISA_PORTABLE)
                        prune_group_apart<Isa>(x + 4 * i, slots, bits, largest);
                    else
                        prune_group<Isa>(x + 4 * i, slots, bits, largest);
                    L::store(values + 2 * g * kTileLanes + lane, slots[0]);
                    L::store(values + (2 * g + 1) * kTileLanes + lane, slots[1]);
                    if (g == kTileGroups - 1) {
                        L::store(codes.part[3] + lane, L::sub(L::shift_right(bits, 13), L::set(1)));
                    } else if (g % 5 == 4) {  // 15 bits are in; each code is one too large
                        L::store(codes.part[g / 5] + lane, L::sub(L::shift_right(bits, 1), L::set(011111)));
                        bits = L::zero();
                    }
                }
            }
        }
        codes.write(out);
    });
    return L::largest(largest);
}

}  // namespace hsb::cpu
