// Query heads of a group are served in chunks: one pass over a page serves a chunk.
#pragma once

#include "cpu/simd/isa.h"

namespace hsb::cpu {

// Query heads that one pass over a page serves.
template <class Isa>
constexpr int kMaxHeads = Isa::registers >= 32 ? 8 : 4;

// Calls body(Heads<n>{}, first head) for the chunks in which a group of query heads is served.
template <int n>
struct Heads {
    static constexpr int value = n;
};
template <class Isa, class Body>
void for_each_chunk(int group, Body &&body) {
    for (int first = 0; first < group;) {
        const int left = group - first;
        if (kMaxHeads<Isa> >= 8 && left >= 8) {
            body(Heads<kMaxHeads<Isa> >= 8 ? 8 : 4>{}, first);
            first += 8;
        } else if (left >= 4) {
            body(Heads<4>{}, first);
            first += 4;
        } else {
            if (left == 3) body(Heads<3>{}, first);
            if (left == 2) body(Heads<2>{}, first);
            if (left == 1) body(Heads<1>{}, first);
            first = group;
        }
    }
}

}  // namespace hsb::cpu
