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

#include "cpu/block_kinds.h"
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

    float *q;             // [group][head_dim]
    float *scores;        // [group][kRun * 64]: scores, then probabilities
    float *out;           // [group][head_dim]
    float *max;           // [group], padded to 16
    float *sum;           // [group], padded to 16
    float *weights;       // [chunk][weight_floats()]: what a kind makes of a block's probabilities
    float *query_tables;  // for each kind [group][query_floats(head_dim)]: what it makes of q

    static constexpr std::int64_t floats(int group, int head_dim) {
        return group * (head_dim + kRun * kBlock + head_dim) + 32 + weight_floats() +
               group * query_floats(kBlockKinds, head_dim);
    }
    DecodeScratch(float *base, int group, int head_dim) {
        q = base;
        scores = q + group * head_dim;
        out = scores + group * kRun * kBlock;
        max = out + group * head_dim;
        sum = max + 16;
        weights = sum + 16;
        query_tables = weights + weight_floats();
    }
    // A kind's query tables, from query head `head` of the group on.
    template <class Kind>
    float *tables_of(Kind, int head, int group, int head_dim) const {
        return query_tables + group * query_floats(Kind::kind, head_dim) + head * Kind::query_floats(head_dim);
    }

private:
    static constexpr std::int64_t weight_floats() {
        return kMaxChunk * most_of_kinds([](auto kind) { return kind.weight_floats(); });
    }
    static constexpr std::int64_t query_floats(int before, int head_dim) {  // of the kinds before one
        return sum_of_kinds(before, [=](auto kind) { return kind.query_floats(head_dim); });
    }
};

}  // namespace hsb::cpu
