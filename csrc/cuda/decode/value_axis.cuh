// Along which dimension V's groups of 4 run (hsb_axis), as decode's kernels take it: which matrix a page of V is, which query
// head and head dim a sum of its product belongs to, and how probabilities become that product's B.
//
//   Page<HeadDim>              A of the product
//   tiles(tiles)               columns of 8 of it, by those of the scores' product, which has one for each 8 query heads
//   room_bytes<Stored>(group)         of shared memory, for each warp
//   head(..), dim(..)          of register i of a lane's C fragment: rows i / 2 of two, columns i % 2
//   factors_of(to, f, ..)      to[i % 2]: of f, of query heads 2t and 2t + 1 of each tile of scores, the one of register i's head
//   kTransposes                whether it takes tiles of probabilities transposed
//   weigh(..)                  what a page of V, stored as Stored says, adds to the running outputs; dealt: rows of scores are in
//                              the order of e4m3 pages of K
#pragma once

#include <type_traits>

#include "cuda/kinds/operand_b.cuh"
#include "cuda/page_product.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/place.cuh"
#include "spread.cuh"

namespace hsb::cuda::decode {

struct AlongTokens {
    static constexpr hsb_axis kAxis = HSB_AXIS_TOKENS;
    static constexpr bool kTransposes = true;
    template <int HeadDim>
    using Page = ValuePage<HeadDim>;

    HSB_HOST_DEVICE static constexpr int tiles(int tiles) { return tiles; }
    template <class Stored>
    HSB_HOST_DEVICE static constexpr int room_bytes(int /*group*/) {
        return 0;
    }

    static __device__ __forceinline__ int head(int tile, int i, int lane) { return tile * 8 + lane % 4 * 2 + i % 2; }
    static __device__ __forceinline__ int dim(int strip, int i, int lane) {
        return strip * kStripRows + lane / 4 + i / 2 * 8;
    }
    template <int Tiles>
    static __device__ __forceinline__ void factors_of(float (&to)[2], const float (&factors)[Tiles][2], int tile) {
        to[0] = factors[tile][0];
        to[1] = factors[tile][1];
    }

    // A C fragment's tile of 8 rows x 8 heads, transposed, is exactly a B register of 16-bit pages, where rows are tokens in
    // order; and where they are not (kinds/fp8_page.cuh), neighbouring threads make registers of e4m3 pages of it. Between
    // the two orders of registers is one exchange.
    template <class T, class Stored, int HeadDim, int Tiles, int OutTiles, int Strips>
    static __device__ __forceinline__ void weigh(float (&out)[OutTiles][Strips][4], hsb_block_kind kind,
                                                 std::uint32_t page, const std::uint32_t (&words)[Tiles][8], bool dealt,
                                                 std::uint32_t /*room*/, int /*group*/, int lane) {
        constexpr bool kIsNarrow = Stored::kHasScale;
        std::uint32_t p[Tiles][2][4];
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int strip = 0; strip < 4; ++strip) {
                std::uint32_t *const b = p[tile][strip / 2];
                const std::uint32_t rows[2] = {words[tile][strip * 2], words[tile][strip * 2 + 1]};
                std::uint32_t &first = b[kIsNarrow ? strip % 2 : strip % 2 * 2];
                std::uint32_t &second = b[kIsNarrow ? strip % 2 + 2 : strip % 2 * 2 + 1];
                if (dealt)
                    fp8_tokens(first, second, rows[0], rows[1], ptx::lane());
                else
                    first = rows[0], second = rows[1];
                if (dealt != kIsNarrow) exchange<2>(first, second, ptx::lane());
            }
        multiply<T, Page<HeadDim>, typename Stored::Kinds>(kind, out, page, HeldB<Tiles, 2>{p}, lane);
    }
};

// Four columns for each query head, one for each place in a group: column c of tile n is that of head 2 n + c / 4, place c % 4.
struct AlongHeadDim {
    static constexpr hsb_axis kAxis = HSB_AXIS_HEAD_DIM;
    static constexpr bool kTransposes = false;
    template <int HeadDim>
    using Page = HeadDimValuePage<HeadDim>;

    HSB_HOST_DEVICE static constexpr int tiles(int tiles) { return tiles * kGroup; }
    template <class Stored>
    HSB_HOST_DEVICE static constexpr int room_bytes(int group) {
        return tiles_of(group) * kSpreadBytes<Stored>;
    }

    static __device__ __forceinline__ int head(int tile, int /*i*/, int lane) { return tile * 2 + lane % 4 / 2; }
    static __device__ __forceinline__ int dim(int strip, int i, int lane) {
        return (strip * kStripRows + lane / 4 + i / 2 * 8) * kGroup + lane % 2 * 2 + i % 2;
    }
    template <int Tiles>
    static __device__ __forceinline__ void factors_of(float (&to)[2], const float (&factors)[Tiles][2], int tile) {
        const float even = __shfl_sync(~0u, factors[tile / 4][0], tile % 4, 4);
        const float odd = __shfl_sync(~0u, factors[tile / 4][1], tile % 4, 4);
        to[0] = to[1] = ptx::lane() % 4 < 2 ? even : odd;
    }

    template <class T, class Stored, int HeadDim, int Tiles, int OutTiles, int Strips>
    static __device__ __forceinline__ void weigh(float (&out)[OutTiles][Strips][4], hsb_block_kind kind,
                                                 std::uint32_t page, const std::uint32_t (&words)[Tiles][8], bool dealt,
                                                 std::uint32_t room, int group, int lane) {
        const auto of_tiles = [&](auto tiles) {
            const SpreadB<decltype(tiles)::value, Tiles, Stored> b(words, dealt, room);
            multiply<T, Page<HeadDim>, typename Stored::Kinds>(kind, out, page, b, lane);
        };
        if constexpr (Tiles == 1)
            if (group <= 4) return of_tiles(std::integral_constant<int, 2>());
        of_tiles(std::integral_constant<int, Tiles * kGroup>());
    }

private:
    // As weigh() takes them.
    HSB_HOST_DEVICE static constexpr int tiles_of(int group) { return group <= 4 ? 2 : group <= 8 ? 4 : 8; }
};

}  // namespace hsb::cuda::decode
