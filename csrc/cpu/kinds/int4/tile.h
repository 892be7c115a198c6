// A tile of int4 as kernels read it: a copy in L1, in the order that it lies in, of bytes of e4m3.
#pragma once

#include <cstring>

#include "cpu/decode/prefetch.h"
#include "cpu/simd/isa.h"
#include "page.h"

namespace hsb::cpu {

// The scales of a page's 64 steps, times what bytes of e4m3 count.
template <class Isa>
void int4_scales(const std::byte *page, int row, float *scale) {
    const auto *from = reinterpret_cast<const std::uint16_t *>(page) + row * kTileSteps;
    const auto unit = Isa::set(kInt4Unit * WideFp16::unit);
    for (int c = 0; c < kTileSteps; c += Isa::width)
        Isa::store(scale + c, Isa::mul(Isa::load(from + c, WideFp16{}), unit));
}

// 8 bytes in a word: compilers make vectors of two. A loop over bytes they unroll first, and then do one by one: 40 times
// as long.
template <int bytes>
void widen_nibbles(const std::byte *from, std::uint8_t *to) {
    constexpr std::uint64_t kEach = 0x0101010101010101;
    for (int at = 0; at < bytes; at += kNibbleLanes, to += 2 * kNibbleLanes) {
        std::uint64_t both[2], low[2], high[2];
        std::memcpy(both, from + at, sizeof both);
        for (int i = 0; i < 2; ++i) {
            low[i] = (both[i] << 4 & 0x80 * kEach) | (both[i] << 1 & 14 * kEach) | kEach;
            high[i] = (both[i] & 0x80 * kEach) | (both[i] >> 3 & 14 * kEach) | kEach;
        }
        std::memcpy(to, low, sizeof low);
        std::memcpy(to + kNibbleLanes, high, sizeof high);
    }
}

struct alignas(64) Int4DenseTile {
    std::byte bytes[DenseKind::tile_bytes_of(1)];
};
struct alignas(64) Int4SparseTile {
    std::byte bytes[Sparse24Kind::tile_bytes_of(1)];
};

inline void widen_tile(const std::byte *tile, Int4DenseTile &to) {
    widen_nibbles<Int4DenseKind::tile_bytes>(tile, reinterpret_cast<std::uint8_t *>(to.bytes));
}
inline void widen_tile(const std::byte *tile, Int4SparseTile &to) {
    std::memcpy(to.bytes, tile, kPatternBytes);
    constexpr int kValues = Int4Sparse24Kind::tile_bytes - static_cast<int>(kPatternBytes);
    widen_nibbles<kValues>(tile + kPatternBytes, reinterpret_cast<std::uint8_t *>(to.bytes + kPatternBytes));
}

// Asks for what lies a few tiles on.
inline void prefetch_tile(const std::byte *tile, std::int64_t bytes) {
    for (std::int64_t at = 0; at < bytes; at += kCacheLine) prefetch(tile + kAhead * bytes + at);
}

}  // namespace hsb::cpu
