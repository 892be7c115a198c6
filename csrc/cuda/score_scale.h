// What attention multiplies q k by, as its kernels take it.
#pragma once

#include <cmath>
#include <cstdint>

namespace hsb::cuda {

// q's sign is flipped instead of the scale's, so that a larger product is always a larger score.
struct ScoreScale {
    float scale;         // positive
    float log2;          // powers of 2 per unit of the product
    std::uint32_t flip;  // xor of a pair of q's values: their sign bits, or 0
};
inline ScoreScale score_scale(float scale) {
    // Not 0: masked products and first maxima are -inf, and -inf * 0 would be NaN.
    const float positive = std::fmax(std::fabs(scale), 1e-30f);
    return {positive, positive * 1.44269504f, scale < 0 ? 0x80008000u : 0u};
}

}  // namespace hsb::cuda
