// Warpgroup products (sm_90a): four warps multiply a tile in shared memory with another one, asynchronously, and keep
// the sums in registers. PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
//
//   C [64 x n] += A [64 x k] B [k x n]     A: rows of k contiguous 16-bit or e4m3 values. B: its columns likewise
//                                          ("K-major"). n: 72 or 96, by the size of c
//
// Warp w of the group holds rows 16 w .. 16 w + 15 of C, and in them every lane what a C fragment of mma.cuh holds:
// c[4 j + i] is element i of the fragment of columns 8 j .. 8 j + 7. The sparse A [64 x 32] has 2 of 4 kept, and is
// stored as its 16 kept columns; warp w's lanes hand over the metadata of its 16 rows, the registers of
// mma_sp_m16n8k32. Of e4m3 the sparse A is [64 x 64], and a metadata register is drawn in kinds/fp8_page.cuh.
//
// Sums of 16-bit products are fp32's. Sums of e4m3 products have 14 bits, by measurement on an H200: of 1 + 2^-14 nothing
// is left of the second, within an instruction or from one to the next.
//
// Between a product's start and the wait for it, its registers, those of the metadata too, are the tensor cores':
// the compiler does not keep other values out of metadata's registers once they are dead to it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::ptx {

template <int Columns>
using WgmmaSums = float[Columns / 2];

// A tile in shared memory whose rows (A) or columns (B) are RowBytes, 128, 64 or 32, of contiguous values, 16-byte chunks
// swizzled over 8 of them as page.cuh draws it. Steps along k move it by bytes within a row.
template <int RowBytes>
class WgmmaTile {
public:
    __device__ __forceinline__ explicit WgmmaTile(std::uint32_t address) : low_(address >> 4 | 1u << 16) {}
    __device__ __forceinline__ std::uint64_t at(int bytes) const {
        static_assert(RowBytes == 128 || RowBytes == 64 || RowBytes == 32, "the swizzles of page.cuh");
        // Bytes from 8 rows to the next 8, and the swizzle.
        constexpr std::uint32_t kHigh = RowBytes * 8 >> 4 | (RowBytes == 128 ? 1u : RowBytes == 64 ? 2u : 3u) << 30;
        std::uint64_t descriptor;
        asm("mov.b64 %0, {%1, %2};" : "=l"(descriptor) : "r"(low_ + (bytes >> 4)), "r"(kHigh));
        return descriptor;
    }

private:
    std::uint32_t low_;
};

// Before the first product that reads registers which other instructions wrote.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of products, which may be empty.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// clang-format off
#define HSB_SUMS_36 \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, " \
        "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
        "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35"
#define HSB_SUMS_48 HSB_SUMS_36 ", %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define HSB_SUMS_OF_C_36 \
    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), \
    "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), \
    "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), \
    "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), \
    "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), \
    "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35])
#define HSB_SUMS_OF_C_48 HSB_SUMS_OF_C_36, \
    "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), "+f"(c[41]), \
    "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47])

// Of each width, by the size of c (half the columns, so many sums) and the numbers of the operands after c:
//
//   wgmma_wait<Pending>(c)       waits until at most `Pending` groups are under way; `c` may then be used
//   wgmma_k16(c, a, b, accumulate, type)                          c += A B; c = A B where `accumulate` is false
//   wgmma_sp_k32<Selector>(c, a, b, metadata, accumulate, type)   the same with a sparse A. Selector: which two lanes
//                                                                 of each quad hold the metadata
//   wgmma_k32(c, a, b, accumulate), wgmma_sp_k64(c, a, b, metadata, accumulate)   the same of e4m3
#define HSB_WGMMA_OF_TYPE(Columns, Sums, P0, P1, P2, P3, P4, Type, Name)                                               \
    __device__ __forceinline__ void wgmma_k16(WgmmaSums<Columns> &c, std::uint64_t a, std::uint64_t b,                 \
                                              bool accumulate, Type) {                                                 \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " P2 ", 0;\n"                                               \
                     "wgmma.mma_async.sync.aligned.m64n" #Columns "k16.f32." Name "." Name " {" HSB_SUMS_##Sums "}, "  \
                     P0 ", " P1 ", add, 1, 1, 0, 0;\n}"                                                                \
                     : HSB_SUMS_OF_C_##Sums                                                                            \
                     : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                             \
    }                                                                                                                  \
    template <int Selector>                                                                                            \
    __device__ __forceinline__ void wgmma_sp_k32(WgmmaSums<Columns> &c, std::uint64_t a, std::uint64_t b,              \
                                                 std::uint32_t metadata, bool accumulate, Type) {                      \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " P4 ", 0;\n"                                               \
                     "wgmma.mma_async.sp.sync.aligned.m64n" #Columns "k32.f32." Name "." Name " {" HSB_SUMS_##Sums     \
                     "}, " P0 ", " P1 ", " P2 ", " P3 ", add, 1, 1, 0, 0;\n}"                                          \
                     : HSB_SUMS_OF_C_##Sums                                                                            \
                     : "l"(a), "l"(b), "r"(metadata), "n"(Selector), "r"(static_cast<int>(accumulate)));               \
    }
#define HSB_WGMMA(Columns, Sums, P0, P1, P2, P3, P4)                                                                   \
    template <int Pending>                                                                                             \
    __device__ __forceinline__ void wgmma_wait(WgmmaSums<Columns> &c) {                                                \
        asm volatile("wgmma.wait_group.sync.aligned " P0 ";" : HSB_SUMS_OF_C_##Sums : "n"(Pending) : "memory");        \
    }                                                                                                                  \
    __device__ __forceinline__ void wgmma_k32(WgmmaSums<Columns> &c, std::uint64_t a, std::uint64_t b,                 \
                                              bool accumulate) {                                                       \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " P2 ", 0;\n"                                               \
                     "wgmma.mma_async.sync.aligned.m64n" #Columns "k32.f32.e4m3.e4m3 {" HSB_SUMS_##Sums "}, " P0       \
                     ", " P1 ", add, 1, 1;\n}"                                                                         \
                     : HSB_SUMS_OF_C_##Sums                                                                            \
                     : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                             \
    }                                                                                                                  \
    __device__ __forceinline__ void wgmma_sp_k64(WgmmaSums<Columns> &c, std::uint64_t a, std::uint64_t b,              \
                                                 std::uint32_t metadata, bool accumulate) {                            \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " P3 ", 0;\n"                                               \
                     "wgmma.mma_async.sp.sync.aligned.m64n" #Columns "k64.f32.e4m3.e4m3 {" HSB_SUMS_##Sums "}, " P0    \
                     ", " P1 ", " P2 ", 0, add, 1, 1;\n}"                                                              \
                     : HSB_SUMS_OF_C_##Sums                                                                            \
                     : "l"(a), "l"(b), "r"(metadata), "r"(static_cast<int>(accumulate)));                              \
    }                                                                                                                  \
    HSB_WGMMA_OF_TYPE(Columns, Sums, P0, P1, P2, P3, P4, __half, "f16")                                                \
    HSB_WGMMA_OF_TYPE(Columns, Sums, P0, P1, P2, P3, P4, __nv_bfloat16, "bf16")
// clang-format on

HSB_WGMMA(72, 36, "%36", "%37", "%38", "%39", "%40")
HSB_WGMMA(96, 48, "%48", "%49", "%50", "%51", "%52")

#undef HSB_WGMMA
#undef HSB_WGMMA_OF_TYPE
#undef HSB_SUMS_36
#undef HSB_SUMS_48
#undef HSB_SUMS_OF_C_36
#undef HSB_SUMS_OF_C_48

}  // namespace hsb::cuda::ptx

#endif
