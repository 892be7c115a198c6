// The two products of prefill,  y[row][lane] (+)= sum over c of A[row][c] * x[c][lane],  A of any kind.
//
//               lanes (queries)                         A: rows x steps, from a page, unpacked (unpack.h)
//             +-----------------+  c                    K: rows = tokens,    x = Q^T [head_dim][lanes], y = S^T
//             |        x        |                       V: rows = head dims, x = P^T [64][lanes],       y += O^T
//             +-----------------+
//     A row   +-----------------+                       Several rows of y stay in registers over all steps, so the
//   ========  |        y        |                       FMAs of one row need not wait for one another.
//             +-----------------+
#pragma once

#include "cpu/block_kinds.h"
#include "tile.h"

namespace hsb::cpu::prefill {

// An unpacked page; a kind of block knows what `data` is: its own, or another that it becomes like.
struct Matrix {
    int rows;
    int steps;
    hsb_block_kind kind;
    const std::byte *data;
};

template <class Isa, bool accumulate>
void product(const Matrix &a, const float *x, float *y, const float *scale) {
    with_kind(a.kind, [&](auto kind) { multiply_page<Isa, accumulate>(kind, a.data, a.rows, a.steps, x, y, scale); });
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
