// Decode's software prefetch.
#pragma once

#include <cstddef>

namespace hsb::cpu {

constexpr int kCacheLine = 64;

// Tiles that the software prefetch runs ahead, into L2. Pages of a kind follow each other in their pool, so what
// lies beyond this page is what this unit, or the next, reads next; beyond a pool a prefetch does nothing. Into L1
// it measured slower than none at all: L1's few miss buffers then wait for memory, and loads queue behind them.
// Always inline: GCC takes a function that only prefetches for one without effect, and may drop calls of it.
constexpr std::size_t kAhead = 4;
[[gnu::always_inline]] inline void prefetch(const std::byte *line) { __builtin_prefetch(line, 0, 2); }

}  // namespace hsb::cpu
