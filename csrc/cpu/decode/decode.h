// Decode attention: one query per head over K and V pages, or over K and V bitmaps.
#pragma once

#include <cstdint>

#include "split.h"

namespace hsb::cpu {

// One unit of work (split.h).
struct DecodeUnit {
    std::int64_t head;  // batch * kv_heads + kv head
    std::int64_t first_block;
    std::int64_t last_block;  // one past the end
    float *partial;           // of the group's first query head; the next head's is splits * partial_floats on
    std::int64_t partial_stride;
    float *scratch;  // DecodeScratch::floats()
};

// Partial results of one unit.
template <class Isa>
void attend_pages(const hsb_decode_params &p, const DecodeUnit &unit);

template <class Isa>
void attend_bitmaps(const hsb_decode_params &p, const DecodeUnit &unit);

// out and lse of one query head (batch * q_heads + query head) from its partial results [splits][partial_floats],
// which it overwrites.
template <class Isa>
void combine_splits(const hsb_decode_params &p, std::int64_t head, float *partials, std::int64_t splits);

}  // namespace hsb::cpu
