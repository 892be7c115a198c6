// What decode and prefill ask of a shape on any device; P is either's params.
#pragma once

#include <cstdint>

#include "element.h"
#include "error.h"
#include "params.h"

namespace hsb {

template <class P>
void check_attention_shape(const P &p) {
    HSB_CHECK(p.batch > 0 && p.kv_heads > 0 && p.q_heads > 0 && p.seq > 0, "sizes must be positive");
    HSB_CHECK(p.q_heads % p.kv_heads == 0 && p.q_heads / p.kv_heads <= 16,
              "q_heads must be 1 to 16 times kv_heads, and a multiple");
    HSB_CHECK(p.head_dim == 64 || p.head_dim == 128, "head_dim must be 64 or 128");
    HSB_CHECK(is_element(p.dtype), "dtype must be " + element_names());
}

// Prefill's products contract tokens, and so its V has groups along them.
inline void check_prefill_axes(const hsb_prefill_params &p) {
    HSB_CHECK(p.k.value_axis == HSB_AXIS_TOKENS && p.v.value_axis == HSB_AXIS_TOKENS,
              "prefill reads V in groups along tokens alone");
}

// Blocks of a (batch, kv head) that prefill's pages hold.
inline std::int64_t stored_blocks(const hsb_prefill_params &p, int block) {
    const std::int64_t blocks = (p.seq + block - 1) / block;
    if (!p.position) return blocks;
    HSB_CHECK(p.stored_blocks > 0 && p.stored_blocks <= blocks, "stored_blocks must be 1 to the blocks of seq");
    return p.stored_blocks;
}

// Outputs are sums of p V that are divided by the sum of p at the end. Where V is near fp32's largest number the sums
// would overflow, though what they are divided into does not; so p is kept so many powers of 2 lower that those of all
// tokens add up to no more than 1/2 if each alone would be no more than 1. Only a type with fp32's exponents has values
// so large, and p in it loses no precision. 0 for others, where it would.
inline float sum_reserve(std::int32_t dtype, std::int64_t seq) {
    if (!reaches_as_far_as_fp32(dtype)) return 0.0f;
    int powers = 0;
    while ((std::int64_t{1} << powers) < seq) ++powers;
    return static_cast<float>(powers + 1);
}

}  // namespace hsb
