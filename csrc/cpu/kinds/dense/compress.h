// Packs dense pages. Returns the largest magnitude bits seen.
#pragma once

#include "cpu/compress/strip.h"
#include "page.h"

namespace hsb::cpu {

template <class Isa, int operand>
std::uint16_t pack_page(DenseKind, const std::uint16_t *block, std::byte *page, int head_dim) {
    using L = Lanes<Isa>;
    using Half = typename L::Half;
    Half largest = L::zero();
    Ahead ahead(block, head_dim);
    for_each_tile<operand>(head_dim, [&](int lane0, int step0, int tile) __attribute__((always_inline)) {
        auto *out = reinterpret_cast<std::uint16_t *>(page + tile * DenseKind::tile_bytes);
        for (int lane = 0; lane < kTileLanes; lane += L::width) {
            const auto strip = Strip<Isa, operand>::at(block, head_dim, lane0 + lane, step0);
            for (int step = 0; step < kTileSteps; step += 8) {
                Half x[8];
                strip.load(step, x);
                ahead.template fetch<sizeof x>();
                for (int i = 0; i < 8; ++i) {
                    L::store(out + (step + i) * kTileLanes + lane, x[i]);
                    largest = L::max(largest, L::bit_and(x[i], L::set(kMagnitude)));
                }
            }
        }
    });
    return L::largest(largest);
}

// All stays, whatever the scores.
template <class Isa, class Type, int operand>
void pack_chosen_page(DenseKind kind, const std::uint16_t *stored, const std::uint16_t *, float, std::byte *page,
                      int head_dim) {
    pack_page<Isa, operand>(kind, stored, page, head_dim);
}

}  // namespace hsb::cpu
