// What append asks of its params on any device.
#pragma once

#include <cstdint>

#include "block_map.h"
#include "element.h"
#include "error.h"
#include "params.h"

namespace hsb {

// block: tokens in one.
inline void check_append_shape(const hsb_append_params &p, int block) {
    HSB_CHECK(p.batch > 0 && p.kv_heads > 0 && p.seq > 0 && p.tokens > 0,
              "batch, kv_heads, seq and tokens must be positive");
    HSB_CHECK(p.head_dim == 64 || p.head_dim == 128, "head_dim must be 64 or 128");
    HSB_CHECK(is_element(p.dtype), "dtype must be " + element_names());
    HSB_CHECK(p.sink >= 0 && p.local >= 0 && p.chunk > 0, "sink and local must not be negative, and chunk positive");
    HSB_CHECK((p.seq + block - 1) / block * p.batch * p.kv_heads < kMostSlots,
              "more blocks than a map can name: cut the batch");
}

// One of K and V.
inline void check_growing(const hsb_growing &g) {
    HSB_CHECK(g.map && g.free && g.state, "map, free and state are required");
    HSB_CHECK(0.0 <= g.ratio && g.ratio <= 1.0, "ratio must be from 0 to 1");
    HSB_CHECK(HSB_STORED_16 <= g.stored && g.stored <= HSB_STORED_INT4, "stored is not an hsb_stored");
    HSB_CHECK((g.stored != HSB_STORED_16) == (g.scale != nullptr), "elements have a scale, or they have 16 bits");
}

}  // namespace hsb
