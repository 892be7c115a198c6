// Shared memory as PTX addresses it: a 32-bit offset into the block's window.
#pragma once

#include <cstdint>

namespace hsb::cuda::ptx {

__device__ __forceinline__ std::uint32_t shared_address(const void *pointer) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ std::uint32_t load_shared_u32(std::uint32_t address) {
    std::uint32_t value;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}

}  // namespace hsb::cuda::ptx
