// Probabilities as B of the product with V in groups along head_dim (page.cuh): row 4 t + i of column (head, j) is p[t, head]
// where i = j, else 0. A register holds two rows of a token, of which one at most is not 0: half of a word of two heads' p, put
// into one of its halves by one prmt, whose selector is the lane's.
//
// A warp's words, two heads of a token, as the scores' product leaves them, lie in shared memory:
//
//   room   [pairs of heads][blocks of 8 tokens][8], words of f16x2; of a block the order in which lanes take them
//
//   16 bits   register n of lane t (of a quad) has places 2 (t % 2) + {0, 1} of token 2 n + t / 2 of the block (ptx/mma.cuh)
//   e4m3      of token 2 (t / 2) + {0, 4, 1, 5}[n] (kinds/fp8_mma.cuh); dense pages want tokens t and t + 4, both halves of each
//
// so that one load of 16 bytes, the same in half of the lanes, has all of a lane's four.
//
// Where V's values have scales of their own by row and col of A, they would multiply words before these are stored, by strips
// (HeldB::kByStrip), each with a room.
#pragma once

#include <cstdint>

#include "cuda/page.cuh"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/place.cuh"
#include "cuda/ptx/shared.cuh"

namespace hsb::cuda::decode {

constexpr int kTokensOfStep = kStepCols / kGroup;

// How much of a page's words is there at a time: all, or half where a ring of 16-bit pages leaves no more room.
template <class Stored>
constexpr int kSpreadTokens = Stored::kHasScale ? kBlock : kBlock / 2;
// Of a pair of heads, and 8 words more, so that those of a warp fall into different banks.
template <class Stored>
constexpr int kSpreadBytes = (kSpreadTokens<Stored> + 8) * 4;

template <int Tiles, int WordTiles, class Stored>
class SpreadB {
public:
    static constexpr int kTiles = Tiles, kSteps = kBlock * kGroup / kStepCols;
    static constexpr bool kByStrip = false;
    static constexpr int kStagedSteps = kSpreadTokens<Stored> / kTokensOfStep;

    // `words`: of query heads 2t and 2t + 1 of each 8, rows i and i + 8 of each strip of scores in turn.
    __device__ __forceinline__ SpreadB(const std::uint32_t (&words)[WordTiles][8], bool dealt, std::uint32_t room)
        : words_(words), dealt_(dealt), room_(room), lane_(ptx::lane()), lower_(selector_of(0)),
          upper_(selector_of(1)) {
        if constexpr (kStagedSteps == kSteps) stage(0);
    }

    __device__ __forceinline__ void step(std::uint32_t (&to)[Tiles][4], int step, int /*strip*/) const {
        if (kStagedSteps < kSteps && step % kStagedSteps == 0) stage(step / kStagedSteps);
        const int t = lane_ % 4;
        const std::uint32_t selector = t % 2 ? upper_ : lower_;
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
            const uint4 words = ptx::load_shared_u32x4(block(tile, step) + t / 2 * 16);
            to[tile][0] = ptx::permute_bytes(words.x, 0, selector);
            to[tile][1] = ptx::permute_bytes(words.y, 0, selector);
            to[tile][2] = ptx::permute_bytes(words.z, 0, selector);
            to[tile][3] = ptx::permute_bytes(words.w, 0, selector);
        }
    }

    __device__ __forceinline__ void dense_e4m3_step(std::uint32_t (&to)[Tiles][4], int step, int /*strip*/) const {
        if (kStagedSteps < kSteps && step % kStagedSteps == 0) stage(step / kStagedSteps);
        const int t = lane_ % 4;
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
            const uint2 words = ptx::load_shared_u32x2(block(tile, step) + t / 2 * 16 + t % 2 * 8);
            to[tile][0] = ptx::permute_bytes(words.x, 0, lower_);
            to[tile][2] = ptx::permute_bytes(words.x, 0, upper_);
            to[tile][1] = ptx::permute_bytes(words.y, 0, lower_);
            to[tile][3] = ptx::permute_bytes(words.y, 0, upper_);
        }
    }

private:
    __device__ __forceinline__ std::uint32_t block(int tile, int step) const {
        return room_ + tile * kSpreadBytes<Stored> + step % kStagedSteps * (kTokensOfStep * 4);
    }

    // Of a register with places 2 `half` and 2 `half` + 1.
    __device__ __forceinline__ std::uint32_t selector_of(int half) const {
        const int column = lane_ / 4, place = column % 4;
        const std::uint32_t own = column / 4 ? 0x32 : 0x10;  // the head's half of a word; from 4 on bytes are 0
        if (place / 2 != half) return 0x4444;
        return place % 2 ? own << 8 | 0x44 : 0x4400 | own;
    }

    // Stores the words of the page's `part`, which all lanes then see.
    __device__ __forceinline__ void stage(int part) const {
        const int i = lane_ / 4, t = lane_ % 4;
        __syncwarp();  // what was there has been read
#pragma unroll
        for (int tile = 0; tile < WordTiles; ++tile) {
            if (tile * 4 + t >= Tiles) continue;
            const std::uint32_t pair = room_ + (tile * 4 + t) * kSpreadBytes<Stored>;
#pragma unroll
            for (int n = 0; n < kStagedSteps; ++n)  // strip n / 2 of the part, rows i and i + 8
                ptx::store_shared_u32(pair + word_at(n, i) * 4, words_[tile][part * kStagedSteps + n]);
        }
        __syncwarp();
    }

    // Where a row's word lies: of row i of a strip, or i + 8, `n` being twice the strip's number, and one more of the latter.
    // That is token i or i + 8 where rows are in order, and where they are dealt token 2 i or 2 i + 1.
    __device__ __forceinline__ int word_at(int n, int i) const {
        constexpr bool kIsNarrow = Stored::kHasScale;
        if (dealt_) {
            const int block = (n / 2 * 2 + i / 4) * kTokensOfStep;
            return kIsNarrow ? block + i % 2 * 4 + n % 2 * 2 + i % 4 / 2 : block + n % 2 * 4 + i % 4;
        }
        const int block = n * kTokensOfStep;
        return kIsNarrow ? block + i % 4 / 2 * 4 + i % 2 * 2 + i / 4 : block + i % 2 * 4 + i / 2;
    }

    const std::uint32_t (&words_)[WordTiles][8];
    bool dealt_;  // rows, as in e4m3 pages of K
    std::uint32_t room_;
    int lane_;  // read for each page: of what outlives it, the compiler would keep what comes of it in registers
    std::uint32_t lower_, upper_;
};

}  // namespace hsb::cuda::decode
