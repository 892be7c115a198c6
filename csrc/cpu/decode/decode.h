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
    std::int64_t length;      // of the sequence, in tokens
    float *partial;           // [group][partial_floats]
    float *scratch;           // DecodeScratch::floats()
};

// Partial results of one unit.
template <class Isa>
void attend_pages(const hsb_decode_params &p, const DecodeUnit &unit);

template <class Isa>
void attend_bitmaps(const hsb_decode_params &p, const DecodeUnit &unit);

// out and lse of one query head (batch * q_heads + query head) from its partial results, `stride` floats apart, which it
// overwrites.
template <class Isa>
void combine_splits(const hsb_decode_params &p, std::int64_t head, float *partials, std::int64_t stride,
                    std::int64_t splits);

}  // namespace hsb::cpu
