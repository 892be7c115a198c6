// Sums of squares and largest magnitudes of tokens as a pruner stores them.
#pragma once

#include <cstdint>

#include "params.h"

namespace hsb::cpu {

// Of `tokens` successive ones, x [tokens, head_dim] less shift [head_dim], which may be NULL; params.h says how.
template <class Isa>
void find_token_norms(const std::uint16_t *x, std::int64_t tokens, int head_dim, int dtype, const float *shift,
                      double *squares, std::uint16_t *largest);

}  // namespace hsb::cpu
