// How a block is read while it is packed: in the order of the tiles of its page (cpu/page.h).
#pragma once

#include <cstdint>

#include "cpu/page.h"
#include "lanes.h"
#include "params.h"

namespace hsb::cpu {

constexpr std::uint16_t kMagnitude = 0x7fff;

// A run of `width` lanes of a tile, from which successive steps of c are read.
//
//   K [token, head dim]: lane = row, c = column; needs a transpose      V [token, head dim]: lane = column, c = row
template <class Isa, int operand>
struct Strip {
    const std::uint16_t *first;  // lane 0, step 0
    int head_dim;

    static Strip at(const std::uint16_t *block, int head_dim, int lane, int step) {
        return {block + (operand == HSB_KEY ? lane * head_dim + step : step * head_dim + lane), head_dim};
    }
    void load(int step, typename Lanes<Isa>::Half (&x)[8]) const {
        if (operand == HSB_KEY) {
            Lanes<Isa>::transposed(first + step, head_dim, x);
        } else {
            for (int i = 0; i < 8; ++i) x[i] = Lanes<Isa>::load(first + (step + i) * head_dim);
        }
    }
};

// Fetches the block that follows while this one is worked on: tiles are columns of a block, which hardware prefetchers
// follow badly (2.5 times slower without). Past the tensor's end a prefetch does nothing.
class Ahead {
public:
    Ahead(const std::uint16_t *block, int head_dim)
        : next_(reinterpret_cast<const char *>(block + kBlock * head_dim)) {}

    template <int bytes>
    void fetch() {
        for (int i = 0; i < bytes; i += 64) __builtin_prefetch(next_ + i);
        next_ += bytes;
    }

private:
    const char *next_;
};

// Calls visit(lane, step, tile) for each tile of a page in storage order: lane tile outer, c tile inner. Always inline, as
// visit should be, so that what it counts up stays in registers.
template <int operand, class Visit>
[[gnu::always_inline]] inline void for_each_tile(int head_dim, Visit &&visit) {
    const int lanes = operand == HSB_KEY ? kBlock : head_dim;
    const int steps = operand == HSB_KEY ? head_dim : kBlock;
    int tile = 0;
    for (int lane = 0; lane < lanes; lane += kTileLanes)
        for (int step = 0; step < steps; step += kTileSteps) visit(lane, step, tile++);
}

}  // namespace hsb::cpu
