// What packing a tensor means, checked; and its blocks as a page of a kind takes them. For launchers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "block_map.h"
#include "compress.h"
#include "compress_shape.h"
#include "cpu/default_arithmetic.h"
#include "cpu/page.h"
#include "cpu/page_pool.h"

namespace hsb::cpu {

inline std::int64_t divided_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// What the params mean, in blocks.
struct Plan {
    std::int64_t heads, full, blocks, eligible, sparse, wide, dense;  // blocks of one head; heads of all batches
    BlockShape shape;
    std::int64_t seq;
    bool is_fitted;  // whether anything is stored or chosen otherwise than x is
    // Of each head in the map and in the pools: as many as there are, or room for more.
    std::int64_t map_blocks, dense_pages, sparse_pages, wide_pages;

    explicit Plan(const hsb_compress_params &p)
        : heads(std::int64_t{p.batch} * p.kv_heads), full(p.seq / kBlock), blocks(divided_up(p.seq, kBlock)),
          eligible(p.last_eligible - p.first_eligible), sparse(p.sparse_per_head),
          wide(p.stored == HSB_STORED_16 ? 0 : blocks - eligible), dense(blocks - sparse - wide),
          shape{p.head_dim, p.operand, p.dtype, p.value_axis}, seq(p.seq),
          is_fitted(p.order != HSB_ORDER_ADJACENT || p.shift || p.weights || p.fold != 0.0f),
          map_blocks(p.map_blocks ? p.map_blocks : blocks), dense_pages(p.map_blocks ? p.dense_pages : dense),
          sparse_pages(p.map_blocks ? p.sparse_pages : sparse), wide_pages(p.map_blocks ? p.wide_pages : wide) {
        check_compress(p, kBlock);
        HSB_CHECK(heads * map_blocks < kMostSlots, "more blocks than a map can name: cut the batch");
        HSB_CHECK(map_blocks >= blocks && dense_pages >= dense && sparse_pages >= sparse && wide_pages >= wide,
                  "a head has more blocks than map_blocks, or than pages of a kind");
    }
    // A block's first element in x, and how many there are.
    std::int64_t begin(std::int64_t head, std::int64_t block) const {
        return (head * seq + block * kBlock) * shape.head_dim;
    }
    std::int64_t elements(std::int64_t block) const {
        return std::min<std::int64_t>(kBlock, seq - block * kBlock) * shape.head_dim;
    }
    // With none or all to be chosen, there is nothing to compare.
    bool needs_losses() const { return 0 < sparse && sparse < eligible; }
};

inline bool prunes(hsb_block_kind kind) {
    return with_kind<AllKinds>(kind, [](auto of_kind) { return of_kind.prunes; });
}

// Blocks as they stand in the tensor. One of these serves one work item.
template <class Isa_>
class PlainBlocks {
public:
    using Isa = Isa_;
    PlainBlocks(const hsb_compress_params &p, const Plan &plan) : p_(p), plan_(plan) {}

    // What 2:4 of a full block is chosen by.
    const std::uint16_t *scores(std::int64_t head, std::int64_t block) { return at(head, block); }

    // Fills the block's page; returns the largest magnitude bits of x.
    std::uint16_t pack(std::int64_t head, std::int64_t block, std::int32_t entry) {
        std::byte *page = page_to_pack(p_, entry);
        if (block < plan_.full) return pack_page<Isa>(kind_of(entry), at(head, block), page, plan_.shape);
        std::uint16_t padded[kBlock * 128] = {};  // missing tokens are zero
        std::memcpy(padded, at(head, block), static_cast<std::size_t>(plan_.elements(block)) * 2);
        return pack_page<Isa>(kind_of(entry), padded, page, plan_.shape);
    }

private:
    const std::uint16_t *at(std::int64_t head, std::int64_t block) const {
        return static_cast<const std::uint16_t *>(p_.x) + plan_.begin(head, block);
    }
    const hsb_compress_params &p_;
    const Plan &plan_;
};

// Blocks as a pruner stores and weighs them, each on its own, in scratch that stays in the caches.
template <class Isa_>
class FittedBlocks {
public:
    using Isa = Isa_;
    FittedBlocks(const hsb_compress_params &p, const Plan &plan) : p_(p), plan_(plan) {}

    const std::uint16_t *scores(std::int64_t head, std::int64_t block) {
        store(head, block, p_.weights);
        return p_.weights ? scores_ : stored_;
    }
    std::uint16_t pack(std::int64_t head, std::int64_t block, std::int32_t entry) {
        const std::uint16_t largest = store_for(entry, head, block);
        fill(entry, stored_, page_to_pack(p_, entry));
        return largest;
    }

protected:
    // Of a page's block, what is stored, and its scores where it is chosen by others.
    std::uint16_t store_for(std::int32_t entry, std::int64_t head, std::int64_t block) {
        return store(head, block, prunes(kind_of(entry)) && p_.weights);
    }
    // A page of 16-bit `values`, which may be what is stored in other units.
    void fill(std::int32_t entry, const std::uint16_t *values, std::byte *page) {
        if (prunes(kind_of(entry)) && (p_.weights || p_.fold != 0.0f || values != stored_))
            pack_chosen_page<Isa>(kind_of(entry), values, p_.weights ? scores_ : stored_, p_.fold, page, plan_.shape);
        else
            pack_page<Isa>(kind_of(entry), values, page, plan_.shape);
    }
    BlockFit fit(std::int64_t head, std::int64_t block) const {
        const auto *weights = static_cast<const std::uint16_t *>(p_.weights);
        if (weights) weights += p_.operand == HSB_KEY ? head * p_.head_dim : head * p_.seq + block * kBlock;
        const auto of_head = [&](const float *channels) { return channels ? channels + head * p_.head_dim : nullptr; };
        return {p_.order, of_head(p_.shift), weights, of_head(p_.scale)};
    }
    const hsb_compress_params &p_;
    const Plan &plan_;
    alignas(64) std::uint16_t stored_[kBlock * 128];

private:
    std::uint16_t store(std::int64_t head, std::int64_t block, bool weighs) {
        return store_block<Isa>(static_cast<const std::uint16_t *>(p_.x) + plan_.begin(head, block),
                                static_cast<int>(plan_.elements(block) / p_.head_dim), fit(head, block), plan_.shape,
                                stored_, weighs ? scores_ : nullptr);
    }
    const DefaultArithmetic arithmetic_;
    alignas(64) std::uint16_t scores_[kBlock * 128];
};

// The same in pages of narrow elements, and in wide ones.
template <class Isa_>
class NarrowBlocks : public FittedBlocks<Isa_> {
public:
    using Isa = Isa_;
    using FittedBlocks<Isa>::FittedBlocks;

    std::uint16_t pack(std::int64_t head, std::int64_t block, std::int32_t entry) {
        const std::uint16_t largest = this->store_for(entry, head, block);
        const BlockFit fit = this->fit(head, block);
        const BlockShape shape = this->plan_.shape;
        std::byte *page = page_to_pack(this->p_, entry);
        if (kind_of(entry) == open_kind(this->p_.stored)) {
            widen_block<Isa>(this->stored_, fit, shape, units_);
            pack_page<Isa>(judged_kind(false), units_, page, shape);
            return largest;
        }
        if (this->p_.stored == HSB_STORED_INT4) {
            this->fill(entry, this->stored_, page_);
            quantise_page<Isa>(kind_of(entry), page_, fit, shape, page);
            return largest;
        }
        const bool in_units = shape.of_groups().operand == HSB_KEY;
        if (in_units) scale_block<Isa>(this->stored_, fit, shape, units_);
        this->fill(entry, in_units ? units_ : this->stored_, page_);
        narrow_page<Isa>(kind_of(entry), page_, fit, shape, page);
        return largest;
    }

private:
    alignas(64) std::uint16_t units_[kBlock * 128];
    alignas(64) std::byte page_[kBlock * 128 * sizeof(std::uint16_t)];
};

}  // namespace hsb::cpu
