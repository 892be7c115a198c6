// Blocks that stay 16 bits in a cache of narrower elements: fp16 in units of the channels' scales, so that queries and
// outputs are the same for all blocks. block_kinds.cuh says what a kind consists of.
//
// There are few of them, sink, window and tail, each twice as large as the largest page beside it: room for one in every
// stage of decode's ring would cost all others bandwidth. So they stay in L2, and a page is what a warp loads from there: the
// A fragments of mma.m16n8k16 (ptx/mma.cuh), lane by lane,
//
//   page   fp16 [rows / 16 strips][cols / 16 steps][32 lanes][8]: a0, a1, a2, a3 of a tile of 16 x 16
//
// Rows are those of the narrow pages (fp8_page.cuh: K's tokens are dealt), and so is the order of the contraction, in which
// registers n and n + 2 of a B fragment of 32 cols meet 16 of them (fp8_mma.cuh). With t = lane % 4 and
// c = 8 (t / 2) + 2 (t % 2) within the step, lane 4 i + t holds
//
//   a0: row i, cols c, c + 1     a1: row i + 8, the same     a2: row i, cols c + 4, c + 5     a3: row i + 8, the same
#pragma once

#include "cuda/page.cuh"
#include "cuda/ptx/global.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/place.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/unrolled.cuh"
#include "params.h"
#include "wide_pack.cuh"

namespace hsb::cuda {

constexpr int kWideTileBytes = 16 * 16 * 2;
HSB_HOST_DEVICE constexpr int wide_page_bytes(int head_dim) { return kBlock * head_dim * 2; }

struct WideMma {
    // `page` is where a stage says where the page lies. Loads of 16 bytes are `kAhead` of their use: L2 is far.
    template <class T, class Shape, int Tiles, int Strips, int Steps>
    static __device__ __forceinline__ void multiply(float (&c)[Tiles][Strips][4], std::uint32_t page,
                                                    const std::uint32_t (&b)[Tiles][Steps][4], int /*lane*/) {
        constexpr int kCount = Strips * Steps * 2;
        constexpr int kAhead = Tiles == 1 ? 16 : 8;  // as many as registers are left for
        const auto *const own =
            reinterpret_cast<const unsigned char *>(ptx::load_shared_u64(page)) + ptx::lane() * kChunkBytes;
        uint4 tiles[kAhead];
        // Strip by strip within a step: sums that do not wait for one another.
        const auto load = [&](int i) {
            tiles[i % kAhead] = ptx::load_once_16(own + (i % Strips * Steps * 2 + i / Strips) * kWideTileBytes);
        };
        unrolled<kAhead>(load);
        unrolled<kCount>([&](int i) {
            const uint4 &tile = tiles[i % kAhead];
            const std::uint32_t a[4] = {tile.x, tile.y, tile.z, tile.w};
            const int step = i / Strips / 2, half = i / Strips % 2;
#pragma unroll
            for (int n = 0; n < Tiles; ++n)
                ptx::mma_m16n8k16(c[n][i % Strips], a, b[n][step][half], b[n][step][half + 2], T());
            if (i + kAhead < kCount) load(i + kAhead);
        });
    }
};

struct WideKind : WideMma, WidePack {
    static constexpr hsb_block_kind kKind = HSB_WIDE;
    static constexpr bool kIsSparse = false;
    static constexpr bool kStays = true;

    HSB_HOST_DEVICE static constexpr int page_bytes(int head_dim) { return wide_page_bytes(head_dim); }

    static const void *pool(const hsb_pages &pages) { return pages.wide; }
    static std::int64_t pool_page_bytes(const hsb_pages &pages) { return pages.wide_page_bytes; }
    static void *pool(const hsb_compress_params &p) { return p.wide; }
};

}  // namespace hsb::cuda
