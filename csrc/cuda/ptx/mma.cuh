// Tensor core products of one warp, 16-bit operands and fp32 sums. With i = lane / 4 and t = lane % 4, a register
// holds two neighbours, the lower in its low half:
//
//   A [16 x 16], row-major   a0: row i, cols 2t, 2t+1    a1: row i+8    a2: row i, cols 2t+8, 2t+9    a3: row i+8
//   B [16 x 8]               b0: rows 2t, 2t+1 of col i                 b1: rows 2t+8, 2t+9
//   C [16 x 8]               c0, c1: row i, cols 2t, 2t+1               c2, c3: row i+8
//
// The sparse A [16 x 32] has the same registers for its 16 kept cols; its B [32 x 8] goes on with b2 and b3, rows + 16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace hsb::cuda::ptx {

// From CUDA 12.5 on, sparse operands whose metadata ascend (ours do) have a form of their own; the plain one may be
// slow.
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 5)
#define HSB_MMA_SP "mma.sp::ordered_metadata.sync.aligned"
#else
#define HSB_MMA_SP "mma.sp.sync.aligned"
#endif

// c += A B, A [16 x 16], B [16 x 8].
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1, __half) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1, __nv_bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += A B, A [16 x 32] with 2 of 4 kept, B [32 x 8]. Selector: which two lanes of each quad hold the metadata.
template <int Selector>
__device__ __forceinline__ void mma_sp_m16n8k32(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[4],
                                                std::uint32_t metadata, __half) {
    static_assert(Selector == 0 || Selector == 1, "lanes 0, 1 or lanes 2, 3 of each quad");
    asm(HSB_MMA_SP
        ".m16n8k32.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, "
        "{%0, %1, %2, %3}, %12, %13;"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),
          "n"(Selector));
}
template <int Selector>
__device__ __forceinline__ void mma_sp_m16n8k32(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[4],
                                                std::uint32_t metadata, __nv_bfloat16) {
    static_assert(Selector == 0 || Selector == 1, "lanes 0, 1 or lanes 2, 3 of each quad");
    asm(HSB_MMA_SP
        ".m16n8k32.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, "
        "{%0, %1, %2, %3}, %12, %13;"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),
          "n"(Selector));
}

#undef HSB_MMA_SP

}  // namespace hsb::cuda::ptx
