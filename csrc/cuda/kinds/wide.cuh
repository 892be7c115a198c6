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
    template <class T, class Shape, class B, int Tiles, int Strips>
    static __device__ __forceinline__ void multiply(float (&c)[Tiles][Strips][4], std::uint32_t page, const B &b,
                                                    int /*lane*/) {
        static_assert(!B::kByStrip, "strips of a step share its registers");
        // Of V in groups along head_dim, which has few strips and many steps, two steps at a time: B comes from shared memory,
        // and all of it would be asked for at once.
        constexpr int kSteps = B::kSteps <= 4 ? B::kSteps : 2, kCount = Strips * kSteps * 2;
        constexpr int kMost = Tiles == 1 ? 16 : 8;  // as many as registers are left for
        constexpr int kAhead = kMost < kCount ? kMost : kCount;
        static_assert(B::kSteps % kSteps == 0, "whole parts");
        const auto *const own =
            reinterpret_cast<const unsigned char *>(ptx::load_shared_u64(page)) + ptx::lane() * kChunkBytes;
#pragma unroll 1
        for (int first = 0; first < B::kSteps; first += kSteps) {
            uint4 tiles[kAhead];
            std::uint32_t of_step[B::kTiles][4];
            // Strip by strip within a step: sums that do not wait for one another.
            const auto load = [&](int i) {
                const int tile = i % Strips * B::kSteps * 2 + i / Strips + first * 2;
                tiles[i % kAhead] = ptx::load_once_16(own + tile * kWideTileBytes);
            };
            unrolled<kAhead>(load);
            unrolled<kCount>([&](int i) {
                const uint4 &tile = tiles[i % kAhead];
                const std::uint32_t a[4] = {tile.x, tile.y, tile.z, tile.w};
                const int half = i / Strips % 2;
                if (i % (2 * Strips) == 0) b.step(of_step, first + i / (2 * Strips), 0);
#pragma unroll
                for (int n = 0; n < B::kTiles; ++n)
                    ptx::mma_m16n8k16(c[n][i % Strips], a, of_step[n][half], of_step[n][half + 2], T());
                if (i + kAhead < kCount) load(i + kAhead);
            });
        }
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
    static void *pool(const hsb_growing &g) { return g.wide; }
    static std::int32_t pages(const hsb_growing &g) { return g.wide_pages; }
};

}  // namespace hsb::cuda
