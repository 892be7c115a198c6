#include "probe.h"

#include "cpu/simd/isa.h"

namespace hsb::cpu {

// Plain words, which the compiler widens to the instruction set's vectors. Four sums, so that no dependency chain
// is the limit; plain stores, as a program's own copies have them.
template <class Isa>
std::uint64_t move_bytes(const std::byte *src, std::byte *dst, std::int64_t bytes) {
    constexpr int kWords = 32;  // 256 bytes a step
    const auto *from = reinterpret_cast<const std::uint64_t *>(src);
    auto *to = reinterpret_cast<std::uint64_t *>(dst);
    std::uint64_t sums[kWords] = {};
    for (std::int64_t i = 0; i < bytes / 8; i += kWords) {
        for (int j = 0; j < kWords; ++j) sums[j] ^= from[i + j];
        if (to)
            for (int j = 0; j < kWords; ++j) to[i + j] = from[i + j];
    }
    std::uint64_t all = 0;
    for (std::uint64_t sum : sums) all ^= sum;
    return all;
}

template std::uint64_t move_bytes<Isa>(const std::byte *, std::byte *, std::int64_t);

}  // namespace hsb::cpu
