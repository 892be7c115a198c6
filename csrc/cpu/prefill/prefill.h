// Causal attention of many queries over K and V pages.
//
// Both products are transposed, S^T = K Q^T and O^T += V^T P^T, so that lanes are queries and A, the operand whose
// rows may be 2:4, comes from the page: a kept value is broadcast and multiplies one row of the other operand, which
// is dense. Half of the kept pairs are then half of the FMAs, and the softmax needs no work across lanes.
//
// Rows. For one (batch, kv head), all queries of the group's heads are rows of one matrix, row = query * group + head
// within the group, so that a tile spans few positions (little work is lost on the diagonal) and a short q_len still
// fills lanes:
//
//   rows   0 .......... lanes ......... 2 lanes ........ 3 lanes ....... q_len * group
//          [   tile 0   ] [   tile 1   ] [   tile 2   ] ... [ last tile, padded ]
//          [        unit 0             ] [        unit 1             ] ...
//
// A unit is what one thread does at a time: it unpacks each page once and uses it for all its tiles. Units share
// nothing, and where tiles begin does not depend on the number of threads, so neither does the result.
#pragma once

#include <cstddef>
#include <cstdint>

#include "params.h"

namespace hsb::cpu::prefill {

// Consecutive rows of one (batch, kv head), beginning at a tile.
struct PrefillUnit {
    std::int64_t head;  // batch * kv_heads + kv head
    std::int64_t first_row;
    std::int64_t last_row;  // one past the end
};

template <class Isa>
int prefill_tile_lanes();

// Scratch of one thread whose units have at most `tiles` tiles. A multiple of 64.
template <class Isa>
std::size_t prefill_scratch_bytes(int head_dim, int tiles);

// `scratch`: prefill_scratch_bytes() bytes, 64-byte aligned.
template <class Isa>
void prefill_unit(const hsb_prefill_params &p, const PrefillUnit &unit, std::byte *scratch);

}  // namespace hsb::cpu::prefill
