// Prunes blocks to 2:4 and packs their pages. Returns the largest magnitude bits seen.
#pragma once

#include "cpu/compress/strip.h"
#include "page.h"

namespace hsb::cpu {

// Which elements of a group are dropped, by magnitude. Their pattern goes into `codes`.
//
// The code of a pattern is 4 d0 + 2 d1 + d2 - 1, with d_i = 1 where element i is dropped; so three bits
// shifted in from the top are a code plus one. Always inline: called, it hands eight vectors over through memory.
template <class Isa>
struct DroppedOfGroup {
    using L = Lanes<Isa>;
    using Half = typename L::Half;

    typename L::Flag d0, d1, d2, d3;

    [[gnu::always_inline]] DroppedOfGroup(const Half *x, Half &codes, Half &largest) {
        Half m[4];
        for (int i = 0; i < 4; ++i) m[i] = L::bit_and(x[i], L::set(kMagnitude));
        largest = L::max(largest, L::max(L::max(m[0], m[1]), L::max(m[2], m[3])));
        // b_ij: j beats i. Of equal ones, i does: the lower index.
        const auto b01 = L::less(m[0], m[1]), b02 = L::less(m[0], m[2]), b03 = L::less(m[0], m[3]);
        const auto b12 = L::less(m[1], m[2]), b13 = L::less(m[1], m[3]), b23 = L::less(m[2], m[3]);
        // Dropped: beaten by two of the three others.
        d0 = L::majority(b01, b02, b03), d1 = L::majority_n1(b01, b12, b13);
        d2 = L::majority_n2(b02, b12, b23), d3 = L::majority_n3(b03, b13, b23);
        codes = L::shift_in(L::shift_in(L::shift_in(codes, d2), d1), d0);
    }
    // The two of a group that are kept, and those that are not, in order.
    [[gnu::always_inline]] void keep(const Half *x, Half (&kept)[2]) const {
        kept[0] = L::select(L::mask(d0), L::select(L::mask(d1), x[2], x[1]), x[0]);
        kept[1] = L::select(L::mask(d3), L::select(L::mask(d2), x[1], x[2]), x[3]);
    }
    [[gnu::always_inline]] void drop(const Half *x, Half (&dropped)[2]) const {
        dropped[0] = L::select(L::mask(d0), x[0], L::select(L::mask(d1), x[1], x[2]));
        dropped[1] = L::select(L::mask(d3), x[3], L::select(L::mask(d2), x[2], x[1]));
    }
};

// Prunes one group: slots[0], slots[1] are the two values kept, in order.
template <class Isa>
[[gnu::always_inline]] inline void prune_group(const typename Lanes<Isa>::Half *x,
                                               typename Lanes<Isa>::Half (&slots)[2], typename Lanes<Isa>::Half &codes,
                                               typename Lanes<Isa>::Half &largest) {
    DroppedOfGroup<Isa>(x, codes, largest).keep(x, slots);
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

// Packs a block's page. A choice prunes its groups: next(lane, step) goes before those of 8 steps of Lanes<Isa>::width
// lanes; prune(i, x, codes, values) takes the i-th of them, elements x, to two slots at `values` and kTileLanes on.
template <class Isa, int operand, class Choice>
[[gnu::always_inline]] inline void pack_groups(const std::uint16_t *block, std::byte *page, int head_dim,
                                               Choice &choice) {
    using L = Lanes<Isa>;
    using Half = typename L::Half;
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
                choice.next(lane0 + lane, step0 + 4 * group);
                for (int i = 0; i < 2; ++i) {
                    const int g = group + i;
                    choice.prune(i, x + 4 * i, bits, values + 2 * g * kTileLanes + lane);
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
}

template <class Isa>
struct ByMagnitude {
    using L = Lanes<Isa>;
    using Half = typename L::Half;

    Ahead ahead;
    Half largest = L::zero();

    [[gnu::always_inline]] void next(int, int) { ahead.template fetch<8 * sizeof(Half)>(); }
    [[gnu::always_inline]] void prune(int, const Half *x, Half &codes, std::uint16_t *values) {
        Half slots[2];
        if constexpr (Isa::isa == HSB_ISA_PORTABLE)
            prune_group_apart<Isa>(x, slots, codes, largest);
        else
            prune_group<Isa>(x, slots, codes, largest);
        L::store(values, slots[0]);
        L::store(values + kTileLanes, slots[1]);
    }
};

template <class Isa, int operand>
std::uint16_t pack_page(Sparse24Kind, const std::uint16_t *block, std::byte *page, int head_dim) {
    ByMagnitude<Isa> choice{Ahead(block, head_dim)};
    pack_groups<Isa, operand>(block, page, head_dim, choice);
    return Lanes<Isa>::largest(choice.largest);
}

// Adds to two slots of Lanes<Isa>::width values each their share of what their groups drop: the sum in fp32, 0 + 0
// where both are -0; then its half of `fold`, and the sum with a value, rounded once, saturating.
template <class Isa, class Type>
[[gnu::always_inline]] inline void fold_dropped(const typename Lanes<Isa>::Half (&dropped)[2], float fold,
                                                std::uint16_t *values) {
    using L = Lanes<Isa>;
    alignas(64) std::uint16_t gone[2][L::width];
    for (int i = 0; i < 2; ++i) L::store(gone[i], dropped[i]);
    const float bound = to_float(infinity_bits(Type::dtype) - 1, Type{});
    const auto largest = Isa::set(bound), lowest = Isa::set(-bound), half = Isa::set(fold / 2);
    for (int i = 0; i < L::width; i += Isa::width) {
        const auto sum =
            Isa::add(Isa::add(Isa::load(gone[0] + i, Type{}), Isa::load(gone[1] + i, Type{})), Isa::zero());
        const auto share = Isa::mul(sum, half);
        for (int slot = 0; slot < 2; ++slot) {
            std::uint16_t *value = values + slot * kTileLanes + i;
            const auto folded = Isa::add(Isa::load(value, Type{}), share);
            Isa::store(value, Isa::max(lowest, Isa::min(largest, folded)), Type{});
        }
    }
}

template <class Isa, class Type, int operand>
struct ByScores {
    using L = Lanes<Isa>;
    using Half = typename L::Half;

    const std::uint16_t *scores;  // [64, head_dim]
    int head_dim;
    float fold;
    Half score[8], largest = L::zero();

    [[gnu::always_inline]] void next(int lane, int step) {
        Strip<Isa, operand>::at(scores, head_dim, lane, step).load(0, score);
    }
    [[gnu::always_inline]] void prune(int i, const Half *x, Half &codes, std::uint16_t *values) {
        const DroppedOfGroup<Isa> group(score + 4 * i, codes, largest);
        Half two[2];
        group.keep(x, two);
        L::store(values, two[0]);
        L::store(values + kTileLanes, two[1]);
        if (fold == 0.0f) return;
        group.drop(x, two);
        fold_dropped<Isa, Type>(two, fold, values);
    }
};

template <class Isa, class Type, int operand>
void pack_chosen_page(Sparse24Kind, const std::uint16_t *stored, const std::uint16_t *scores, float fold,
                      std::byte *page, int head_dim) {
    ByScores<Isa, Type, operand> choice{scores, head_dim, fold, {}};
    pack_groups<Isa, operand>(stored, page, head_dim, choice);
}

}  // namespace hsb::cpu
