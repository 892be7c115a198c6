// The CPU page: one 64-token block of K or V for one kv head, as the SIMD stream that the kernels read.
//
// Both products are seen as  y[lane] += sum over c of A[lane][c] * x[c]:
//   K: lane = token, c = head dim   (scores)          V: lane = head dim, c = token   (output)
// so K and V share one picture. A page is a row of tiles of 32 lanes x 64 steps of c,
//
//   tile index = (lane / 32) * (steps / 64) + c / 64        lanes x steps = 64 x head_dim (K), head_dim x 64 (V)
//
// What the bytes of a tile are, each kind of block draws for itself: kinds/<kind>/page.h. The torch definition of the
// same bytes is hsbench/cache/cpu_layout.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hsb::cpu {

constexpr int kBlock = 64;  // tokens
constexpr int kTileLanes = 32;
constexpr int kTileSteps = 64;  // of c

constexpr int tiles_per_page(int head_dim) { return kBlock * head_dim / (kTileLanes * kTileSteps); }

// Pages of one kind, side by side.
struct Pool {
    const std::byte *pages;
    std::int64_t page_bytes;
};

}  // namespace hsb::cpu
