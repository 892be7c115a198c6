// What compress asks of its params on any device.
#pragma once

#include <cstdint>

#include "element.h"
#include "error.h"
#include "params.h"

namespace hsb {

// block: tokens in one.
inline void check_compress(const hsb_compress_params &p, int block) {
    HSB_CHECK(p.batch > 0 && p.kv_heads > 0 && p.seq > 0, "batch, kv_heads and seq must be positive");
    HSB_CHECK(p.head_dim == 64 || p.head_dim == 128, "head_dim must be 64 or 128");
    HSB_CHECK(is_element(p.dtype), "dtype must be " + element_names());
    HSB_CHECK(p.operand == HSB_KEY || p.operand == HSB_VALUE, "operand must be K or V");
    HSB_CHECK(0 <= p.first_eligible && p.first_eligible <= p.last_eligible && p.last_eligible <= p.seq / block,
              "eligible blocks must be full blocks of the sequence");
    HSB_CHECK(0 <= p.sparse_per_head && p.sparse_per_head <= p.last_eligible - p.first_eligible,
              "no more blocks can be 2:4 than are eligible");
    HSB_CHECK(p.order == HSB_ORDER_ADJACENT || (p.order == HSB_ORDER_MIRROR && p.operand == HSB_KEY),
              "order must be an hsb_order, and adjacent for V");
    HSB_CHECK(p.fold == 0.0f || (p.fold > 0.0f && p.fold <= 1.0f && p.operand == HSB_VALUE),
              "fold must be from 0 to 1, and 0 for K");
    HSB_CHECK(p.value_axis == HSB_AXIS_TOKENS ||
                  (p.value_axis == HSB_AXIS_HEAD_DIM && p.operand == HSB_VALUE && !p.weights && p.fold == 0.0f),
              "value_axis must be an hsb_axis, along head_dim of V alone, without weights and fold");
    HSB_CHECK(p.stored >= HSB_STORED_16 && p.stored <= HSB_STORED_INT4, "stored is not an hsb_stored");
    HSB_CHECK((p.stored != HSB_STORED_16) == (p.scale != nullptr), "elements have a scale, or they have 16 bits");
}

}  // namespace hsb
