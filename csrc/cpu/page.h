// The CPU page: one 64-token block of K or V for one kv head, as the SIMD stream that the kernels read.
//
// Both products are seen as  y[lane] += sum over c of A[lane][c] * x[c]:
//   K: lane = token, c = head dim   (scores)          V: lane = head dim, c = token   (output)
// so K and V share one picture. A page is a row of tiles of 32 lanes x 64 steps of c,
//
//   tile index = (lane / 32) * (steps / 64) + c / 64        lanes x steps = 64 x head_dim (K), head_dim x 64 (V)
//
// Dense tile, 4096 bytes: for each c, 32 lanes of 16-bit values.
//
// 2:4 tile, 2240 bytes: a group is 4 successive c, of which each lane keeps 2. Its pattern, one of 6, is a 3-bit
// code (PATTERN below): 16 groups need 48 bits a lane, a fourth less than two 2-bit indices per group.
//
//   byte    0  u32 low[32]     lane l: codes of groups 0..9 at bits 3g; bits 30..31 = bits 0..1 of group 15's code
//   byte  128  u32 high[16]    half word h = lane / 16 of high[lane % 16]: codes of groups 10..14 at bits 3 (g - 10);
//                              bit 15 = bit 2 of group 15's code
//   byte  192  u16 value[16 groups][2 slots][32 lanes]
//
// Patterns stand before the values they steer, in one sequential stream; that beats separate arrays. The torch
// definition of the same bytes is hsbench/cache/cpu_layout.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hsb::cpu {

constexpr int kBlock = 64;  // tokens
constexpr int kTileLanes = 32;
constexpr int kTileSteps = 64;  // of c
constexpr int kTileGroups = kTileSteps / 4;

constexpr std::size_t kDenseTileBytes = kTileSteps * kTileLanes * 2;
constexpr std::size_t kPatternBytes = 192;
constexpr std::size_t kHighPatterns = 128;  // byte offset of high[]
constexpr std::size_t kSparseTileBytes = kPatternBytes + kTileGroups * 2 * kTileLanes * 2;
static_assert(kSparseTileBytes == 2240, "16 groups x 2 slots x 32 lanes of 16 bits, and 48 bits of pattern a lane");

constexpr int tiles_per_page(int head_dim) { return kBlock * head_dim / (kTileLanes * kTileSteps); }
constexpr std::size_t dense_page_bytes(int head_dim) { return tiles_per_page(head_dim) * kDenseTileBytes; }
constexpr std::size_t sparse_page_bytes(int head_dim) { return tiles_per_page(head_dim) * kSparseTileBytes; }

// Kept positions of each pattern code, in lexicographic order; slot 0 is the lower position.
constexpr int kPatterns = 6;
constexpr std::uint8_t kPattern[kPatterns][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};

}  // namespace hsb::cpu
