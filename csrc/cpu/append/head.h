// K or V of one (sequence, kv head) of a cache that grows. The torch definition of the same is
// hsbench/cache/growing_torch.py. For launchers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "append.h"
#include "cpu/compress/blocks.h"
#include "cpu/compress/scan.h"
#include "losses.h"

namespace hsb::cpu {

// What an append makes of a sequence's window.
class Window {
public:
    Window(const hsb_append_params &p, std::int64_t length, std::int64_t count)
        : p_(p), length_(length), count_(count) {}

    std::int64_t begin() const { return length_; }
    std::int64_t end() const { return length_ + count_; }
    // The first block that is ever judged.
    std::int64_t first() const { return divided_up(p_.sink, kBlock); }
    // Blocks before it have left the window.
    std::int64_t judged_end() const {
        const std::int64_t open = p_.local + (count_ < p_.chunk ? count_ : p_.chunk) - 1;
        return end() > open ? (end() - open) / kBlock : 0;
    }

private:
    const hsb_append_params &p_;
    const std::int64_t length_, count_;
};

// Whether the next block becomes 2:4, of `judged` before it, `sparse` of them 2:4, and `at_most` with no higher loss.
inline bool becomes_sparse(double ratio, std::int64_t judged, std::int64_t sparse, std::int64_t at_most) {
    const double share = ratio * static_cast<double>(judged + 1);
    if (static_cast<double>(sparse) > share) return false;
    return static_cast<double>(sparse + 1) < share || static_cast<double>(at_most) < std::ceil(share - 1e-9);
}

template <class Isa>
class GrowingHead {
public:
    // `head`: of all sequences'.
    GrowingHead(const hsb_append_params &p, bool is_key, std::int64_t head, FirstNonFinite &bad)
        : p_(p), g_(is_key ? p.key : p.value), head_(head), bad_(bad), head_dim_(p.head_dim),
          shape_{p.head_dim, is_key ? HSB_KEY : HSB_VALUE, p.dtype, g_.value_axis},
          x_(static_cast<const std::uint16_t *>(is_key ? p.k : p.v) + head * p.tokens * p.head_dim),
          blocks_(divided_up(p.seq, kBlock)), map_(g_.map + head * blocks_), state_(g_.state + head * 4),
          free_(g_.free + head * open_pages()) {}

    void append(const Window &window) {
        const std::int64_t begin = window.begin(), end = window.end();
        const auto next = [&] { return window.first() + state_[kJudged]; };
        for (std::int64_t block = begin / kBlock; block * kBlock < end; ++block) {
            const std::int64_t from = std::max(begin, block * kBlock), to = std::min(end, (block + 1) * kBlock);
            if (from == block * kBlock) open(block);
            write(block, from - block * kBlock, from - begin, to - from);
            while (next() < std::min(window.judged_end(), to / kBlock)) judge(next());
        }
        while (next() < std::min(window.judged_end(), end / kBlock)) judge(next());
    }

private:
    enum { kOpen, kSparse, kNarrow, kJudged };  // of state_

    bool is_narrow() const { return g_.stored != HSB_STORED_16; }
    std::int64_t open_pages() const { return is_narrow() ? g_.wide_pages : g_.dense_pages; }
    hsb_block_kind open_kind() const { return hsb::open_kind(g_.stored); }

    // Of the head's own pages of a kind, which are `pages`.
    std::int32_t entry(hsb_block_kind kind, std::int64_t pages, std::int64_t page) const {
        return entry_of(kind, static_cast<std::int32_t>(head_ * pages + page));
    }
    std::uint16_t *open_page(std::int64_t block) const {
        auto *pages = static_cast<std::uint16_t *>(is_narrow() ? g_.wide : g_.dense);
        return pages + slot_of(map_[block]) * kBlock * head_dim_;
    }

    void open(std::int64_t block) {
        map_[block] = entry(open_kind(), open_pages(), free_[state_[kOpen]++]);
        std::memset(open_page(block), 0, std::size_t{kBlock} * head_dim_ * 2);
    }

    // Tokens `first` and on of those appended, to rows of a block's open page.
    void write(std::int64_t block, std::int64_t row, std::int64_t first, std::int64_t count) {
        const DefaultArithmetic arithmetic;
        const std::uint16_t largest = write_tokens<Isa>(x_ + first * head_dim_, static_cast<int>(count), of_head(),
                                                        shape_, static_cast<int>(row), open_page(block));
        if (largest >= infinity_bits(p_.dtype))
            bad_.scan(static_cast<const std::uint16_t *>(shape_.operand == HSB_KEY ? p_.k : p_.v),
                      (head_ * p_.tokens + first) * head_dim_, count * head_dim_);
    }

    BlockFit of_head() const {
        const auto of_channels = [&](const float *x) { return x ? x + head_ * head_dim_ : nullptr; };
        const auto *weights = static_cast<const std::uint16_t *>(g_.weights);
        return {g_.order, of_channels(g_.shift), weights ? weights + head_ * head_dim_ : nullptr,
                of_channels(g_.scale)};
    }

    void judge(std::int64_t block) {
        const DefaultArithmetic arithmetic;
        if (!is_narrow() && g_.ratio == 0.0) {
            ++state_[kJudged];
            return;
        }
        read_tokens<Isa>(open_page(block), of_head(), shape_, block_);
        const hsb_compress_params one = as_tensor();
        const Plan plan(one);
        const auto become = [&](auto &blocks) {
            const bool is_sparse = chooses(blocks);
            ++state_[kJudged];
            if (!is_sparse && !is_narrow()) return;
            const std::int32_t was = map_[block];
            map_[block] = is_sparse ? entry(judged_kind(true), g_.sparse_pages, state_[kSparse]++)
                                    : entry(judged_kind(false), g_.dense_pages, state_[kNarrow]++);
            blocks.pack(0, 0, map_[block]);
            free_[--state_[kOpen]] = static_cast<std::int32_t>(slot_of(was) - head_ * open_pages());
        };
        if (is_narrow()) {
            NarrowBlocks<Isa> blocks(one, plan);
            become(blocks);
        } else if (plan.is_fitted) {
            FittedBlocks<Isa> blocks(one, plan);
            become(blocks);
        } else {
            PlainBlocks<Isa> blocks(one, plan);
            become(blocks);
        }
    }

    // A block that was read as a tensor of its own, whose pages are those of all heads.
    hsb_compress_params as_tensor() const {
        const BlockFit fit = of_head();
        hsb_compress_params one{};
        one.batch = one.kv_heads = 1;
        one.head_dim = head_dim_;
        one.operand = shape_.operand;
        one.seq = kBlock;
        one.last_eligible = one.sparse_per_head = 1;
        one.dtype = p_.dtype;
        one.order = g_.order;
        one.x = block_;
        one.dense = g_.dense;
        one.sparse = g_.sparse;
        one.wide = g_.wide;
        one.weights = fit.weights;
        one.scale = fit.scale;
        one.fold = g_.fold;
        one.stored = g_.stored;
        one.value_axis = g_.value_axis;
        return one;
    }

    template <class Blocks>
    bool chooses(Blocks &blocks) {
        if (g_.ratio == 0.0 || g_.ratio == 1.0) return g_.ratio > 0.0;
        double *losses = g_.losses + head_ * blocks_;
        const std::int32_t judged = state_[kJudged];
        losses[judged] = loss_by_halves(blocks.scores(0, 0), shape_);
        std::int64_t at_most = 0;
        for (std::int32_t i = 0; i < judged; ++i) at_most += losses[i] <= losses[judged];
        return becomes_sparse(g_.ratio, judged, state_[kSparse], at_most);
    }

    const hsb_append_params &p_;
    const hsb_growing &g_;
    const std::int64_t head_;
    FirstNonFinite &bad_;
    const int head_dim_;
    const BlockShape shape_;
    const std::uint16_t *const x_;
    const std::int64_t blocks_;
    std::int32_t *const map_, *const state_, *const free_;
    alignas(64) std::uint16_t block_[kBlock * 128];
};

}  // namespace hsb::cpu
