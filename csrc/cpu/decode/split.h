// How decode's work is cut: (batch, kv head) x splits of its tokens.
//
//   kv head 0   | split 0 | split 1 | ... | split n-1 |      one unit = one split of one kv head, for the whole
//   kv head 1   | split 0 | split 1 | ... | split n-1 |      group of query heads: each K and V byte is read once
//                |<- split_blocks * 64 tokens ->|
//
// Units are handed out in ascending order. Each leaves, per query head, a maximum, a sum and an output not yet
// divided by it; whoever finishes the last split of a kv head combines them in the order of the splits. Nothing
// depends on which thread did what, so results repeat bit for bit.
//
// Workspace:  counter u32 [batch * kv_heads], padded to 64 bytes
//             partial     [batch * q_heads][splits][partial_floats]     head_dim of output, maximum, sum
//             scratch     [threads][scratch_floats]
#pragma once

#include <cstdint>

#include "cpu/page.h"
#include "params.h"

namespace hsb::cpu {

// Blocks that share one softmax update: their K pages are read in one go, then their V pages. Longer runs mean
// fewer changes between the two streams and fewer reductions (8 is 3% over 4); the run's scores must stay in L1.
constexpr int kRun = 8;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct DecodeSplits {
    std::int64_t blocks;        // per kv head
    std::int64_t split_blocks;  // per split, a multiple of kRun; the last split may have fewer
    std::int64_t splits;        // per kv head
    std::int64_t units;
};

// Enough units that the last one to finish is a small part of the whole (128, and 8 a thread on large machines);
// no more than that, since each begins both streams anew: 256 cost 5 to 10% at 8k and 32k tokens.
inline DecodeSplits decode_splits(const hsb_decode_params &p) {
    const std::int64_t heads = static_cast<std::int64_t>(p.batch) * p.kv_heads;
    const std::int64_t wanted = p.threads > 16 ? 8 * static_cast<std::int64_t>(p.threads) : 128;
    DecodeSplits s;
    s.blocks = ceil_div(p.seq, kBlock);
    s.split_blocks = ceil_div(ceil_div(s.blocks, ceil_div(wanted, heads)), kRun) * kRun;
    s.splits = ceil_div(s.blocks, s.split_blocks);
    s.units = heads * s.splits;
    return s;
}

constexpr std::int64_t partial_floats(int head_dim) { return head_dim + 16; }

// Scratch of one thread, in floats; every part is a multiple of 16 floats (64 bytes).
struct DecodeScratch {
    static constexpr int kMaxChunk = 8;  // query heads that one pass over a page serves, at most

    float *q;         // [group][head_dim], times scale * log2(e)
    float *q_tables;  // [chunk][head_dim / 4][heads of the chunk][16]
    float *scores;    // [group][kRun * 64]: scores, then probabilities
    float *p_tables;  // [16][heads of the chunk][16]
    float *out;       // [group][head_dim]
    float *max;       // [group], padded to 16
    float *sum;       // [group], padded to 16

    static constexpr std::int64_t floats(int group, int head_dim) {
        return group * (head_dim + head_dim / 4 * 16 + kRun * kBlock + head_dim) + kTileGroups * kMaxChunk * 16 + 32;
    }
    DecodeScratch(float *base, int group, int head_dim) {
        q = base;
        q_tables = q + group * head_dim;
        scores = q_tables + group * (head_dim / 4) * 16;
        p_tables = scores + group * kRun * kBlock;
        out = p_tables + kTileGroups * kMaxChunk * 16;
        max = out + group * head_dim;
        sum = max + 16;
    }
};

}  // namespace hsb::cpu
