// Reads (and copies) a buffer once, to learn what the memory can do.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hsb::cpu {

// One thread's share: `bytes` from src, to dst where it is not null. Returns a value that depends on all of it.
template <class Isa>
std::uint64_t move_bytes(const std::byte *src, std::byte *dst, std::int64_t bytes);

}  // namespace hsb::cpu
