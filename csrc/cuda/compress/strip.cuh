// What a warp of pack_pages (pack.cuh) holds of a block, as the kinds of blocks take it to write their pages.
#pragma once

#include <cstdint>

#include "cuda/page.cuh"

namespace hsb::cuda {

// A strip of K: 16 tokens x head_dim. A lane has 16-byte chunks, as its source deals their values (fit.cuh).
template <int HeadDim>
struct KeyStrip {
    static constexpr bool kIsKey = true;
    static constexpr int kRowChunks = HeadDim / 8;
    static constexpr int kLoads = kStripRows * kRowChunks / 32;
    static constexpr int kRowsApart = 32 / kRowChunks;  // from one chunk to the next

    using Chunks = uint4[kLoads];

    int strip;  // of the block
    int row0;   // of the block: of the lane's first chunk
    int chunk;  // of its row, the same for all
};

// The same of V in groups along head_dim, which run as K's do: 16 tokens, of which a lane has a run of 4 or 8, so that it has
// whole 16-byte chunks of the rows of two groups of the page.
template <int HeadDim>
struct RowStrip {
    static constexpr bool kIsKey = false;
    static constexpr int kRowChunks = HeadDim / 8;
    static constexpr int kLoads = kStripRows * kRowChunks / 32;
    static constexpr int kRowsApart = 1;
    static_assert(kLoads % 4 == 0, "runs of four tokens");

    using Chunks = uint4[kLoads];

    int strip;  // of the block
    int row0;   // of the block: the lane's first token
    int chunk;  // of its row: groups 2 chunk and 2 chunk + 1, which are rows of the page

    __device__ __forceinline__ int group(int which) const { return chunk * 2 + which; }
};

// 64 head dims of V, of all 64 tokens. A lane has 8 head dims x two runs of 8 tokens, which its kind chooses.
struct ValueRuns {
    using Pairs = std::uint32_t[16][4];  // [token][pair of head dims]

    int part;  // of the block
    int dims;  // 8 head dims from 8 * dims of the part on,
    int row0;  // which are these of V
    int run;   // 0 .. 3: which runs of tokens
};

}  // namespace hsb::cuda
