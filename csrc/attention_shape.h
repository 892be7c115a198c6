// What decode and prefill ask of a shape on any device; P is either's params.
#pragma once

#include "error.h"
#include "params.h"

namespace hsb {

template <class P>
void check_attention_shape(const P &p) {
    HSB_CHECK(p.batch > 0 && p.kv_heads > 0 && p.q_heads > 0 && p.seq > 0, "sizes must be positive");
    HSB_CHECK(p.q_heads % p.kv_heads == 0 && p.q_heads / p.kv_heads <= 16,
              "q_heads must be 1 to 16 times kv_heads, and a multiple");
    HSB_CHECK(p.head_dim == 64 || p.head_dim == 128, "head_dim must be 64 or 128");
    HSB_CHECK(p.dtype == HSB_FP16 || p.dtype == HSB_BF16, "dtype must be fp16 or bf16");
}

}  // namespace hsb
