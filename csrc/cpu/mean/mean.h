// Sums of tokens.
#pragma once

#include <cstdint>

#include "params.h"

namespace hsb::cpu {

// sums [head_dim] = the sum of x [tokens, head_dim] over its tokens.
template <class Isa>
void add_tokens(const std::uint16_t *x, std::int64_t tokens, int head_dim, int dtype, double *sums);

}  // namespace hsb::cpu
