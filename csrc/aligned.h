// Whether a pointer, or null, is at a multiple of some bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hsb {

inline bool is_aligned(const void *at, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(at) % bytes == 0; }

}  // namespace hsb
