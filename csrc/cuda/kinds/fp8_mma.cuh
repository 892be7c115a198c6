// What both kinds of e4m3 pages are to the products of one warp (page_product.cuh): A becomes fp16 on its way to the tensor
// cores, B is fp16.
//
// ldmatrix gives thread t of a quad 4 bytes of each 16-byte chunk, bytes 4t .. 4t + 3; the order of the contraction within a
// product is free as long as A and B agree, and so is chosen such that these bytes become the thread's own registers:
//
//   dense   cols 4t, 4t + 1 as those of register a0 (or a1, of row + 8), 4t + 2, 4t + 3 as those of a2 (a3)
//   2:4     stored group 2t as group t of mma.sp.m16n8k32, stored group 2t + 1 as group t + 4
//
// B has the order that 2:4 asks for, in which register n of thread t holds cols c and c + 1 of each step of 32,
//
//   c = 8 (t / 2) + 2 (t % 2) + {0, 16, 4, 20}[n]
//
// of which neighbouring threads make what dense asks for, c = 4t + {0, 2, 16, 18}, by an exchange, and back.
#pragma once

#include <cstdint>

#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/e4m3.cuh"
#include "fp8_page.cuh"

namespace hsb::cuda {

// The first of the cols that register `number` of a lane holds of a step of 32.
__device__ __forceinline__ int fp8_col(int number, int lane) {
    return lane % 4 / 2 * 8 + lane % 2 * 2 + number % 2 * 16 + number / 2 * 4;
}

// A thread's second and the first of the one `Apart` further on, whose number has that bit, change places. Its own inverse.
template <int Apart>
__device__ __forceinline__ void exchange(std::uint32_t &first, std::uint32_t &second, int lane) {
    const bool has_bit = lane & Apart;
    const std::uint32_t got = __shfl_xor_sync(~0u, has_bit ? first : second, Apart);
    if (has_bit)
        first = got;
    else
        second = got;
}

// Of a strip of 16 tokens, transposed: `even` holds tokens 4t and 4t + 2 of it, `odd` 4t + 1 and 4t + 3. To B's registers of
// that strip, the first and the third of a step or the second and the fourth. By exchange<2>() these become those that 16-bit
// pages ask for: tokens 2t, 2t + 1, and 8 more.
__device__ __forceinline__ void fp8_tokens(std::uint32_t &first, std::uint32_t &second, std::uint32_t even,
                                           std::uint32_t odd, int lane) {
    first = ptx::low_halves(even, odd);
    second = ptx::high_halves(even, odd);
    exchange<1>(first, second, lane);
}

// Four registers of a dense A, or of a 2:4 one, of the bytes of rows i and i + 8.
__device__ __forceinline__ void fp16_of_e4m3(std::uint32_t (&a)[4], std::uint32_t row, std::uint32_t row_below) {
    a[0] = ptx::fp16x2_of_e4m3x4<false>(row);
    a[1] = ptx::fp16x2_of_e4m3x4<false>(row_below);
    a[2] = ptx::fp16x2_of_e4m3x4<true>(row);
    a[3] = ptx::fp16x2_of_e4m3x4<true>(row_below);
}

// A page's metadata register, of 8 groups of one row, as that of two mma.sp.m16n8k32, of 4 groups of rows i and i + 8: group g
// of a step is stored group 2 g, or 2 g - 7 from 4 on. So lane 2 j of a quad wants the even groups of its own row and of lane
// 2 j + 1's, lane 2 j + 1 the odd ones.
class Fp8Metadata {
public:
    __device__ explicit Fp8Metadata(int lane) : selector_(lane % 2 ? 0x3175 : 0x6420) {}
    __device__ __forceinline__ std::uint32_t operator()(std::uint32_t stored) const {
        // Of each half of the word, groups 0, 2, 1, 3: its even groups in one byte and its odd ones in the next.
        const std::uint32_t swap = (stored ^ stored >> 4) & 0x00f000f0u;
        const std::uint32_t mine = stored ^ swap ^ swap << 4;
        return ptx::permute_bytes(mine, __shfl_xor_sync(~0u, mine, 1), selector_);
    }

private:
    std::uint32_t selector_;
};

}  // namespace hsb::cuda
