// What the launcher (append.cu) calls and each file of an instantiation (instantiation.cu.in) holds one of.
#pragma once

#include <cstdint>

#include "block_map.h"
#include "params.h"

namespace hsb::cuda::append {

// K or V, as hsb_growing has it.
struct Growing {
    unsigned char *pools[kBlockKinds];
    std::int32_t pages[kBlockKinds];  // of each (batch, kv head)
    std::int32_t *map;
    std::int32_t *free;
    std::int32_t *state;
    double *losses;
    const float *shift;
    const std::uint16_t *weights;
    const float *scale;
    const std::uint16_t *x;  // [batch, kv_heads, tokens, head_dim]
    unsigned long long *non_finite;
    double ratio;
    float half_fold;
    bool mirror;          // K's channels are in the mirror order
    bool along_head_dim;  // V's groups
};

struct Arguments {
    Growing tensors[2];     // by hsb_operand
    std::int32_t operands;  // that this launch appends to: both, or one
    std::int32_t operand;   // the first of them
    bool raises;            // the sequences' lengths, for which launches of both operands need the old ones
    const std::int32_t *counts;
    std::int32_t *lengths;
    std::int32_t *overflow;
    unsigned *arrived;  // [batch]: CTAs that have read the length
    std::int64_t tokens;
    std::int32_t batch, kv_heads, seq, blocks;
    std::int32_t first;  // block that is ever judged
    std::int32_t local, chunk;
    std::uint32_t infinity;  // infinity_bits(dtype)
};

template <class T, int HeadDim, class Stored>
void launch_append(const Arguments &a, void *stream);

}  // namespace hsb::cuda::append
