// Which prefill kernel is the faster one for a problem: an estimate of the time that each takes.
//
// sm80 starts sooner and shares a multiprocessor between two CTAs; sm90 takes less for a page once it is under way. So
// sm80 wins where few pages are seen, and where the last wave of sm90's larger tiles is nearly empty. What an estimate counts:
//
//   longest   pages that the tile sees which sees most: its CTA runs through them one by one
//   pages     of all tiles of all heads: shared by the multiprocessors
//   waves     sm90 has one CTA on a multiprocessor; a later one starts when an earlier one has ended
//
// The constants are microseconds on an H200 (csrc/README.md says how to measure them again: tools/prefill_paths.py); only
// their ratios matter. Over the 300 shapes there, the path so chosen takes at most 1.043 of the better one's time.
#pragma once

#include <cstdint>

#include "cuda/page.cuh"

namespace hsb::cuda::prefill {

// A problem, as far as the time of its kernels depends on it.
struct Work {
    int head_dim;
    std::int64_t q_len;
    std::int64_t seq;    // tokens, or the capacity of a cache that grows
    std::int64_t heads;  // batch * q_heads
    float sparse;        // share of 2:4 pages, K and V together, as far as the pools tell
    bool mixed;          // K or V has pages of more than one kind
    int multiprocessors;
};

// What a way to cut the queries into tiles makes of it.
struct Tiles {
    std::int64_t ctas;
    std::int64_t longest;
    std::int64_t pages;
};

constexpr Tiles cut(const Work &work, int tile_queries) {
    Tiles tiles{0, 0, 0};
    const std::int64_t past = work.seq - work.q_len, per_head = ceil_div(work.q_len, tile_queries);
    // Pages of the first tiles grow by a tile's queries; only the last may be a part.
    const std::int64_t whole = per_head - 1;
    tiles.longest = ceil_div(work.seq, kBlock);
    const std::int64_t first = whole > 0 ? ceil_div(past + tile_queries, kBlock) : 0;
    const std::int64_t last = whole > 0 ? ceil_div(past + whole * tile_queries, kBlock) : 0;
    tiles.pages = (whole * (first + last) / 2 + tiles.longest) * work.heads;
    tiles.ctas = per_head * work.heads;
    return tiles;
}

constexpr float larger(float a, float b) { return a > b ? a : b; }
constexpr float smaller(float a, float b) { return a < b ? a : b; }

constexpr float estimate_sm80(const Work &work, int tile_queries) {
    const Tiles tiles = cut(work, tile_queries);
    const bool wide = work.head_dim > 64;
    const float start = wide ? 6.8f : 5.6f;
    const float page = wide ? 1.54f - 0.31f * work.sparse : 1.01f - 0.09f * work.sparse;    // alone
    const float shared = wide ? 1.30f - 0.29f * work.sparse : 0.83f - 0.09f * work.sparse;  // where there are many
    const auto per = static_cast<float>(work.multiprocessors);
    const float neighbours = smaller(1.0f, larger(0.0f, static_cast<float>(tiles.ctas) / per - 1.0f));
    // Of few queries most warps have none, and leave the multiprocessor to its other CTA.
    constexpr int kWarps = 4;
    const std::int64_t with_queries = ceil_div(work.q_len * kWarps, tile_queries);
    const float busy = smaller(1.0f, static_cast<float>(with_queries) / kWarps);
    return start + larger(page * static_cast<float>(tiles.longest) * (1.0f + 0.27f * neighbours * busy),
                          shared * static_cast<float>(tiles.pages) * busy / per);
}

constexpr float estimate_sm90(const Work &work, int tile_queries) {
    const Tiles tiles = cut(work, tile_queries);
    const bool wide = work.head_dim > 64;
    const float start = wide ? 8.8f : 7.9f;
    const float page = wide ? 1.03f : 0.825f;
    const float wave = (wide ? 16.5f : 13.0f) - 2.0f * work.sparse + (work.mixed ? 1.5f : 0.0f);
    const float shared = wide ? 1.30f : 0.96f;
    // Pages of one kind after the other: up to four such runs, each with a first product that nothing hides.
    const float runs = work.mixed ? 1.3f * (smaller(4.0f, static_cast<float>(tiles.longest)) - 1.0f) : 0.0f;
    const auto longest = static_cast<float>(tiles.longest), per = static_cast<float>(work.multiprocessors);
    const float later = smaller(3.0f, static_cast<float>(ceil_div(tiles.ctas, work.multiprocessors) - 1));
    const float in_all = start + runs + page * longest + wave * later +
                         shared * larger(0.0f, static_cast<float>(tiles.pages) / per - longest);
    // In doubt sm80: this estimate has the larger errors.
    return 1.04f * in_all;
}

// Shapes of the grid, at either side.
constexpr Work on_h200(int head_dim, int q_len, int seq, int heads, float sparse, bool mixed) {
    return {head_dim, q_len, seq, heads, sparse, mixed, 132};
}
constexpr bool prefers_sm80(const Work &work, int sm90_queries) {
    return estimate_sm80(work, 96) < estimate_sm90(work, sm90_queries);
}
static_assert(prefers_sm80(on_h200(64, 64, 64, 32, 0.0f, false), 192), "6.8 and 8.3 us");
static_assert(prefers_sm80(on_h200(64, 1024, 1024, 32, 0.5f, true), 192), "26.0 and 39.8 us");
static_assert(prefers_sm80(on_h200(128, 1024, 1024, 32, 1.0f, false), 216), "33.8 and 40.3 us");
static_assert(prefers_sm80(on_h200(128, 16, 8192, 256, 0.0f, false), 192), "a batch that grows: 213 and 287 us");
static_assert(prefers_sm80(on_h200(64, 16, 1024, 8, 0.5f, true), 192), "a cache that grows: 21.6 and 22.2 us");
static_assert(!prefers_sm80(on_h200(128, 16, 8192, 8, 0.5f, true), 192), "a cache that grows: 165 and 132 us");
static_assert(!prefers_sm80(on_h200(128, 1, 1024, 32, 0.0f, false), 192), "35.5 and 28.6 us");
static_assert(!prefers_sm80(on_h200(64, 2048, 2048, 32, 0.0f, false), 192), "82.6 and 75.4 us");
static_assert(!prefers_sm80(on_h200(128, 32768, 32768, 32, 1.0f, false), 216), "long prompts");

}  // namespace hsb::cuda::prefill
