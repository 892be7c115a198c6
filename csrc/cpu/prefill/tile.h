// A tile of prefill: as many queries as fill a few vectors, one a lane; and rows of y, which stay in registers.
#pragma once

#include "cpu/simd/isa.h"

namespace hsb::cpu::prefill {

// Sizes, from the number and width of vector registers. How many rows of A are in flight together, each kind of block
// says for itself: their accumulators must fit in the registers.
template <class Isa>
struct Tile {
    // Wider is better where loads are the limit, and x must fit in a 32 KiB L1 with room to spare (head_dim 128: 24 KiB
    // at 48 lanes). 3 serves all: on AVX-512, 4 and 6 measured no faster.
    static constexpr int vectors = 3;
    static constexpr int lanes = vectors * Isa::width;
    static constexpr unsigned row_bytes = lanes * sizeof(float);
};

template <class Isa, int rows, bool accumulate>
inline void begin_rows(typename Isa::Float (&sum)[rows][Tile<Isa>::vectors], const float *y, const float *scale) {
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < Tile<Isa>::vectors; ++v)
            sum[r][v] = accumulate ? Isa::load(y + r * Tile<Isa>::lanes + v * Isa::width) : Isa::zero();
    if (!accumulate || !scale) return;
    for (int v = 0; v < Tile<Isa>::vectors; ++v) {
        const auto factor = Isa::load(scale + v * Isa::width);
        for (int r = 0; r < rows; ++r) sum[r][v] = Isa::mul(sum[r][v], factor);
    }
}

template <class Isa, int rows>
inline void end_rows(const typename Isa::Float (&sum)[rows][Tile<Isa>::vectors], float *y) {
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < Tile<Isa>::vectors; ++v) Isa::store(y + r * Tile<Isa>::lanes + v * Isa::width, sum[r][v]);
}

}  // namespace hsb::cpu::prefill
