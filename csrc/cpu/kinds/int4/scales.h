// The scales of a page of int4, as kernels read them.
#pragma once

#include "cpu/simd/isa.h"
#include "page.h"

namespace hsb::cpu {

constexpr float kInt4Level =
    0.5f / WideFp16::unit;  // what a level is of a scale, 2^8 too small as all narrow values are

// The scales of the 64 steps of row `row` of a page.
template <class Isa>
void int4_scales(const std::byte *page, int row, float *scale) {
    const auto *from = reinterpret_cast<const std::uint16_t *>(page) + row * kTileSteps;
    for (int c = 0; c < kTileSteps; c += Isa::width) Isa::store(scale + c, Isa::load(from + c, Int4::Scale{}));
}

}  // namespace hsb::cpu
