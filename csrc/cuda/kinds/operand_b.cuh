// B of a page's product, as a kind's multiply() asks for it: by steps of 32 cols in ascending order, and within one by strips.
//
//   kTiles, kSteps      columns of 8, at most as many as there are sums for; steps of 32 cols of A
//   kByStrip            whether each strip of A has a B of its own, as where a scale belongs to rows and cols of A. Else it is
//                       asked for that of strip 0 alone
//   step                registers of a step, in the order of kinds/*_mma.cuh of 16-bit pages or of e4m3
//   dense_e4m3_step     the same as a dense page of e4m3 wants them (fp8_mma.cuh): n and n + 2 of 16 cols each
#pragma once

#include <cstdint>

#include "cuda/ptx/place.cuh"
#include "fp8_mma.cuh"

namespace hsb::cuda {

// All of it in registers.
template <int Tiles, int Steps>
struct HeldB {
    static constexpr int kTiles = Tiles, kSteps = Steps;
    static constexpr bool kByStrip = false;
    const std::uint32_t (&b)[Tiles][Steps][4];

    __device__ __forceinline__ void step(std::uint32_t (&to)[Tiles][4], int step, int /*strip*/) const {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int i = 0; i < 4; ++i) to[tile][i] = b[tile][step][i];
    }
    __device__ __forceinline__ void dense_e4m3_step(std::uint32_t (&to)[Tiles][4], int at, int strip) const {
        step(to, at, strip);
        // Read here: of what outlives the page, the compiler would keep what comes of it in registers.
        const int lane = ptx::lane();
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
            exchange<1>(to[tile][0], to[tile][2], lane);
            exchange<1>(to[tile][1], to[tile][3], lane);
        }
    }
};

}  // namespace hsb::cuda
