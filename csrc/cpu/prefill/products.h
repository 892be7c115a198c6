// The two products of prefill,  y[row][lane] (+)= sum over c of A[row][c] * x[c][lane],  A dense or 2:4.
//
//               lanes (queries)                         A: rows x steps, from a page, unpacked (unpack.h)
//             +-----------------+  c                    K: rows = tokens,    x = Q^T [head_dim][lanes], y = S^T
//             |        x        |                       V: rows = head dims, x = P^T [64][lanes],       y += O^T
//             +-----------------+
//     A row   +-----------------+                       Several rows of y stay in registers over all steps, so the
//   ========  |        y        |                       FMAs of one row need not wait for one another.
//             +-----------------+
#pragma once

#include <cstdint>
#include <cstring>

#include "params.h"

namespace hsb::cpu::prefill {

constexpr int kQuad = 4;  // rows of a 2:4 product that are in flight together

// Tile sizes, from the number and width of vector registers.
template <class Isa>
struct Tile {
    // Loads are the limit of a 2:4 product: per step of one quad, 4 * vectors of x, one of values and one of offsets,
    // so wider is better. But 4 * vectors accumulators and 4 temporaries must fit in 16 registers, and x in a 32 KiB
    // L1 with room to spare (head_dim 128: 24 KiB at 48 lanes). 3 serves all: on AVX-512, 4 and 6 measured no faster.
    static constexpr int vectors = 3;
    static constexpr int lanes = vectors * Isa::width;
    // Dense: rows * vectors accumulators, `vectors` of x and one of A.
    static constexpr int dense_rows = Isa::registers >= 32 ? 8 : 4;
    static_assert(kQuad * vectors + 4 <= Isa::registers, "accumulators of a 2:4 quad and its temporaries");
    static_assert(dense_rows * vectors + vectors + 1 <= Isa::registers, "accumulators of a dense panel");
    static constexpr unsigned row_bytes = lanes * sizeof(float);
};

// One group of 4 steps for a quad of rows. The values of 4 rows lie together: one load brings them into a register,
// from which each is broadcast by a shuffle; four broadcast loads would compete with the loads of x.
struct QuadGroup {
    float value[2][kQuad];           // by kept slot
    std::uint16_t offset[2][kQuad];  // of the row of x that the value multiplies, bytes
};
static_assert(sizeof(QuadGroup) == 48, "no 16-byte load of it may straddle a cache line");

// An unpacked page.
struct Matrix {
    int rows;
    int steps;
    hsb_block_kind kind;
    const void *data;  // dense: float [rows / dense_rows][steps][dense_rows]; 2:4: QuadGroup [rows / 4][steps / 4]
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

template <class Isa, bool accumulate>
void dense_product(const Matrix &a, const float *x, float *y, const float *scale) {
    using T = Tile<Isa>;
    const auto *value = static_cast<const float *>(a.data);
    for (int row = 0; row < a.rows; row += T::dense_rows, y += T::dense_rows * T::lanes) {
        typename Isa::Float sum[T::dense_rows][T::vectors];
        begin_rows<Isa, T::dense_rows, accumulate>(sum, y, scale);
        const float *from = x;
        for (int c = 0; c < a.steps; ++c, from += T::lanes, value += T::dense_rows) {
            typename Isa::Float b[T::vectors];
            for (int v = 0; v < T::vectors; ++v) b[v] = Isa::load(from + v * Isa::width);
            for (int r = 0; r < T::dense_rows; ++r) {
                const auto factor = Isa::set(value[r]);
                for (int v = 0; v < T::vectors; ++v) sum[r][v] = Isa::fma(factor, b[v], sum[r][v]);
            }
        }
        end_rows<Isa, T::dense_rows>(sum, y);
    }
}

// One row of a quad: its kept value times the row of x at `offset`.
template <class Isa, int row>
inline void quad_row(typename Isa::Float (&sum)[kQuad][Tile<Isa>::vectors], typename Isa::Float values, const char *x,
                     std::uint64_t offsets) {
    const auto factor = Isa::template splat<row>(values);
    const auto *from = reinterpret_cast<const float *>(x + (offsets >> 16 * row & 0xffff));
    for (int v = 0; v < Tile<Isa>::vectors; ++v)
        sum[row][v] = Isa::fma(factor, Isa::load(from + v * Isa::width), sum[row][v]);
}

template <class Isa, bool accumulate>
void sparse_product(const Matrix &a, const float *x, float *y, const float *scale) {
    using T = Tile<Isa>;
    const auto *group = static_cast<const QuadGroup *>(a.data);
    const auto *from = reinterpret_cast<const char *>(x);
    for (int row = 0; row < a.rows; row += kQuad, y += kQuad * T::lanes) {
        typename Isa::Float sum[kQuad][T::vectors];
        begin_rows<Isa, kQuad, accumulate>(sum, y, scale);
        for (const QuadGroup *end = group + a.steps / 4; group != end; ++group)
            for (int slot = 0; slot < 2; ++slot) {
                const auto values = Isa::load_quad(group->value[slot]);
                std::uint64_t offsets;  // all four by one load: loads are what is short
                std::memcpy(&offsets, group->offset[slot], sizeof offsets);
                quad_row<Isa, 0>(sum, values, from, offsets);
                quad_row<Isa, 1>(sum, values, from, offsets);
                quad_row<Isa, 2>(sum, values, from, offsets);
                quad_row<Isa, 3>(sum, values, from, offsets);
            }
        end_rows<Isa, kQuad>(sum, y);
    }
}

template <class Isa, bool accumulate>
void product(const Matrix &a, const float *x, float *y, const float *scale) {
    switch (a.kind) {
    case HSB_SPARSE_2_4: return sparse_product<Isa, accumulate>(a, x, y, scale);
    case HSB_DENSE: return dense_product<Isa, accumulate>(a, x, y, scale);
    }
}

// y = A x, or y = y * scale + A x (scale [lanes], or null for 1).
template <class Isa>
void multiply(const Matrix &a, const float *x, float *y) {
    product<Isa, false>(a, x, y, nullptr);
}

template <class Isa>
void multiply_add(const Matrix &a, const float *x, float *y, const float *scale) {
    product<Isa, true>(a, x, y, scale);
}

}  // namespace hsb::cpu::prefill
