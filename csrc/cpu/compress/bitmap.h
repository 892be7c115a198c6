// Per-token unstructured pruning into MUSTAFAR's bitmap format (params.h: hsb_bitmaps).
#pragma once

#include <cstdint>

namespace hsb::cpu {

constexpr int kChunk = 64;  // elements per bitmap
constexpr int kPad = 8;     // values; a chunk's kept values are padded to a multiple of it

// For `rows` tokens of x [rows, head_dim], sets bit i of a token's bitmaps [rows, head_dim / 64] where its element i is
// among the `keep` of largest magnitude, ties keeping the lower index. Returns the largest magnitude bits seen.
template <class Isa>
std::uint16_t find_bitmaps(const std::uint16_t *x, std::int64_t rows, int head_dim, int keep, std::uint64_t *bitmap);

// Writes the kept values of `chunks` successive chunks, each padded with zeros; they fill [values, end). Returns the
// largest magnitude bits of x, kept or not.
template <class Isa>
std::uint16_t gather_values(const std::uint16_t *x, std::int64_t chunks, const std::uint64_t *bitmap,
                            std::uint16_t *values, const std::uint16_t *end);

}  // namespace hsb::cpu
