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
// Of a cache that grows, a sequence has as many splits as its length asks for, and the units of a sequence stand in a row.
//
// Workspace:  counter u32 [batch * kv_heads], padded to 64 bytes
//             partial     [units][group][partial_floats]     head_dim of output, maximum, sum
//             scratch     [threads][scratch_floats]
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/block_kinds.h"
#include "cpu/page.h"
#include "params.h"

namespace hsb::cpu {

// Blocks that share one softmax update: their K pages are read in one go, then their V pages. Longer runs mean
// fewer changes between the two streams and fewer reductions (8 is 3% over 4); the run's scores must stay in L1.
constexpr int kRun = 8;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Enough units that the last one to finish is a small part of the whole (128, and 8 a thread on large machines);
// no more than that, since each begins both streams anew: 256 cost 5 to 10% at 8k and 32k tokens.
inline std::int64_t wanted_units(const hsb_decode_params &p) {
    return p.threads > 16 ? 8 * static_cast<std::int64_t>(p.threads) : 128;
}

inline std::int64_t split_blocks_of(std::int64_t blocks, std::int64_t splits) {
    return std::max<std::int64_t>(1, ceil_div(ceil_div(blocks, splits), kRun)) * kRun;
}

// One part of a kv head.
struct Split {
    std::int64_t head;           // batch * kv_heads + kv head
    std::int64_t first, last;    // blocks, one past the end
    std::int64_t of_head;        // the head's splits
    std::int64_t first_of_head;  // unit of its first one
};

// How all heads are cut: alike, or, of a cache that grows, by the length of each sequence.
class Splits {
public:
    explicit Splits(const hsb_decode_params &p) : kv_heads_(p.kv_heads) {
        const std::int64_t heads = std::int64_t{p.batch} * p.kv_heads, wanted = wanted_units(p);
        if (!p.lengths) {
            blocks_ = ceil_div(p.seq, kBlock);
            split_blocks_ = split_blocks_of(blocks_, ceil_div(wanted, heads));
            units_ = heads * ceil_div(blocks_, split_blocks_);
            return;
        }
        std::int64_t all = 0;
        for (std::int32_t i = 0; i < p.batch; ++i) all += ceil_div(p.lengths[i], kBlock) * p.kv_heads;
        split_blocks_ = split_blocks_of(all, wanted);
        for (std::int32_t i = 0; i < p.batch; ++i) {
            sequences_.push_back({units_, ceil_div(p.lengths[i], kBlock)});
            units_ += p.kv_heads * splits_of(sequences_.back().blocks);
        }
    }
    std::int64_t units() const { return units_; }

    Split operator[](std::int64_t unit) const {
        Sequence sequence{0, blocks_};
        std::int64_t heads_before = 0;
        if (!sequences_.empty()) {
            const auto after = [](std::int64_t wanted, const Sequence &other) { return wanted < other.first_unit; };
            const auto at = std::upper_bound(sequences_.begin(), sequences_.end(), unit, after) - 1;
            sequence = *at;
            heads_before = (at - sequences_.begin()) * kv_heads_;
        }
        const std::int64_t splits = splits_of(sequence.blocks), in_sequence = unit - sequence.first_unit;
        const std::int64_t head = in_sequence / splits, split = in_sequence % splits, first = split * split_blocks_;
        return {heads_before + head, first, std::min(first + split_blocks_, sequence.blocks), splits, unit - split};
    }

    // The most that there can be, whatever the lengths are.
    static std::int64_t most_units(const hsb_decode_params &p) {
        return p.lengths ? wanted_units(p) + std::int64_t{p.batch} * p.kv_heads : Splits(p).units();
    }

private:
    struct Sequence {
        std::int64_t first_unit, blocks;
    };
    // A head without blocks has a split that holds nothing.
    std::int64_t splits_of(std::int64_t blocks) const {
        return std::max<std::int64_t>(1, ceil_div(blocks, split_blocks_));
    }

    std::int64_t kv_heads_, blocks_ = 0, split_blocks_ = 0, units_ = 0;
    std::vector<Sequence> sequences_;
};

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
