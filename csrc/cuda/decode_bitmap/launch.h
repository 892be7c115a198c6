// What the launcher (decode_bitmap.cu) calls and each file of an instantiation (instantiation.cu.in) holds one of.
#pragma once

#include <cstdint>

#include "plan.h"

namespace hsb::cuda::decode_bitmap {

struct BitmapOperand {
    const std::uint32_t *bitmap;  // [chunks, 2]
    const std::uint32_t *offset;  // [chunks]
    const unsigned char *values;
};

struct Arguments {
    BitmapOperand k, v;
    const void *q;   // [heads, group, head_dim]; heads of all batches
    float *partial;  // workspace
    void *out;       // [heads, group, head_dim]
    float *lse;      // [heads, group]
    std::int64_t seq;
    std::int64_t all_chunks;  // of the whole tensor
    std::int32_t tiles;       // per head
    std::int32_t splits;
    std::int32_t group;
    float scale;         // of the scores; not negative, q's sign is flipped instead
    float log2_scale;    // powers of 2 per unit of the scores
    float reserve;       // sum_reserve(): powers of 2 by which probabilities are kept lower
    std::uint32_t flip;  // xor of a pair of q's values: their sign bits, or 0
};

// Kernels for groups of up to Tiles * 8 query heads: how many CTAs a multiprocessor of the current device takes, and their
// launch for `heads` (batch, kv head).
template <class T, int HeadDim, int Tiles>
int ctas_per_multiprocessor();
template <class T, int HeadDim, int Tiles>
void launch_decode_bitmap(const Arguments &a, std::int64_t heads, void *stream);

}  // namespace hsb::cuda::decode_bitmap
