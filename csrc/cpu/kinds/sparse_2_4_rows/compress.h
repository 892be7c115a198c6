// Prunes blocks of V to 2:4 along head_dim and packs their pages.
#pragma once

#include "cpu/compress/strip.h"
#include "page.h"

namespace hsb::cpu {

// One row of a tile: of each 4 of its 32 head dims the two whose magnitudes are largest by `scores`, ties keep the lower
// index. Returns their mask. Without a branch, so that what can be is SIMD.
template <class Isa>  // so that each instruction set has its own
std::uint32_t pack_row(const std::uint16_t *stored, const std::uint16_t *scores, std::uint16_t *values) {
    std::uint32_t mask = 0;
    for (int g = 0; g < kTileLanes / 4; ++g) {
        const std::uint16_t *x = stored + 4 * g;
        int m[4];
        for (int i = 0; i < 4; ++i) m[i] = scores[4 * g + i] & kMagnitude;
        // b_ij: j beats i. Dropped: beaten by two of the three others.
        const int b01 = m[0] < m[1], b02 = m[0] < m[2], b03 = m[0] < m[3];
        const int b12 = m[1] < m[2], b13 = m[1] < m[3], b23 = m[2] < m[3];
        const bool d0 = b01 + b02 + b03 >= 2, d1 = !b01 + b12 + b13 >= 2;
        const bool d2 = !b02 + !b12 + b23 >= 2, d3 = !b03 + !b13 + !b23 >= 2;
        values[2 * g] = d0 ? d1 ? x[2] : x[1] : x[0];
        values[2 * g + 1] = d3 ? d2 ? x[1] : x[2] : x[3];
        const int dropped = d0 | d1 << 1 | d2 << 2 | d3 << 3;
        mask |= static_cast<std::uint32_t>(dropped ^ 15) << 4 * g;
    }
    return mask;
}

// Returns the largest magnitude bits of what is stored.
template <class Isa>
std::uint16_t pack_rows(const std::uint16_t *stored, const std::uint16_t *scores, std::byte *page, int head_dim) {
    using L = Lanes<Isa>;
    typename L::Half largest = L::zero();
    Ahead ahead(stored, head_dim);
    for (int token = 0; token < kBlock; ++token, stored += head_dim, scores += head_dim)
        for (int lane = 0; lane < head_dim; lane += kTileLanes) {
            std::byte *tile = page + lane / kTileLanes * Sparse24RowsKind::tile_bytes;
            auto *values = reinterpret_cast<std::uint16_t *>(tile + Sparse24RowsKind::values_at);
            reinterpret_cast<std::uint32_t *>(tile)[token] =
                pack_row<Isa>(stored + lane, scores + lane, values + token * Sparse24RowsKind::kept);
            ahead.template fetch<kTileLanes * 2>();
            for (int i = 0; i < kTileLanes; i += L::width)
                largest = L::max(largest, L::bit_and(L::load(stored + lane + i), L::set(kMagnitude)));
        }
    return L::largest(largest);
}

template <class Isa, int operand>
std::uint16_t pack_page(Sparse24RowsKind, const std::uint16_t *block, std::byte *page, int head_dim) {
    return pack_rows<Isa>(block, block, page, head_dim);
}

// There is nothing to fold along head_dim.
template <class Isa, class Type, int operand>
void pack_chosen_page(Sparse24RowsKind, const std::uint16_t *stored, const std::uint16_t *scores, float,
                      std::byte *page, int head_dim) {
    pack_rows<Isa>(stored, scores, page, head_dim);
}

}  // namespace hsb::cpu
