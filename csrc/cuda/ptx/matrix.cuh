// 8 x 8 tiles of 16-bit values between shared memory and the registers of a warp. In registers, lane l holds row l / 4,
// cols 2 (l % 4) and + 1.
#pragma once

#include <cstdint>

namespace hsb::cuda::ptx {

// Four tiles; lane l gives the address of row l % 8 (16 bytes) of tile l / 8.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&tiles)[4], std::uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(address));
}

// Stores four tiles, each transposed; lane l gives the address of row l % 8 (16 bytes), a column in registers, of tile
// l / 8. sm_90 and newer.
__device__ __forceinline__ void stmatrix_x4_trans(std::uint32_t address, const std::uint32_t (&tiles)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(tiles[0]),
                 "r"(tiles[1]), "r"(tiles[2]), "r"(tiles[3])
                 : "memory");
}

// The same of two tiles, by the addresses of lanes 0 to 15.
__device__ __forceinline__ void stmatrix_x2_trans(std::uint32_t address, std::uint32_t first, std::uint32_t second) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(first),
                 "r"(second)
                 : "memory");
}

// The same of one tile, by the addresses of lanes 0 to 7.
__device__ __forceinline__ void stmatrix_x1_trans(std::uint32_t address, std::uint32_t tile) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(tile) : "memory");
}

// One tile, transposed within the warp.
__device__ __forceinline__ std::uint32_t movmatrix_trans(std::uint32_t tile) {
    std::uint32_t transposed;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(tile));
    return transposed;
}

}  // namespace hsb::cuda::ptx
