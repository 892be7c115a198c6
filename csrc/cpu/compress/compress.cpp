#include "compress.h"

#include <algorithm>

#include "api.h"
#include "block_map.h"
#include "blocks.h"
#include "cpu/pool.h"
#include "cpu/simd/isa.h"
#include "scan.h"

// Three rounds, each shared out over the threads; the second knows all losses of a head.
//
//   x of one head:  | not eligible |          eligible          | not eligible | tail |
//   1 losses                       [ run ][ run ][ run ][ run  ]                         skipped at ratio 0 and 1
//   2 choice        [ one item per head: the sparse_per_head lowest, then map entries  ]
//   3 pages         [ run ][ run ][ run ][ run ][ run ][ run ][ run ][ run ][ run ]       dense or 2:4 by the map
//
// A run is a few blocks, enough to make handing it out cheap.
namespace hsb::cpu {
namespace {

constexpr std::int64_t kRun = 16;  // blocks

// Scratch of the choice: per head, a loss per eligible block, and their order.
struct Scratch {
    Loss *loss;
    std::int32_t *order;

    static std::int64_t bytes(const Plan &plan) {
        return plan.needs_losses() ? plan.heads * plan.eligible * std::int64_t{sizeof(Loss) + sizeof(std::int32_t)} : 0;
    }
    Scratch(const Plan &plan, void *workspace)
        : loss(static_cast<Loss *>(workspace)),
          order(loss ? reinterpret_cast<std::int32_t *>(loss + plan.heads * plan.eligible) : nullptr) {}
};

template <class Blocks>
void find_losses(const hsb_compress_params &p, const Plan &plan, const Scratch &scratch) {
    const std::int64_t runs = divided_up(plan.eligible, kRun);
    parallel_for(p.threads, plan.heads * runs, [&](std::int64_t item, int) {
        const std::int64_t head = item / runs, first = item % runs * kRun;
        Blocks blocks(p, plan);
        for (std::int64_t i = first; i < std::min(first + kRun, plan.eligible); ++i) {
            const std::uint16_t *scores = blocks.scores(head, p.first_eligible + i);
            const DroppedSum dropped = sum_dropped<typename Blocks::Isa>(scores, plan.shape);
            scratch.loss[head * plan.eligible + i] =
                is_exact(dropped, p.dtype) ? loss_of(dropped.sum) : exact_loss(scores, plan.shape.of_groups());
        }
    });
}

// Fills the map: with each block's kind, then numbers each kind in ascending order of blocks.
void choose(const hsb_compress_params &p, const Plan &plan, const Scratch &scratch) {
    constexpr hsb_block_kind kSparse = judged_kind(true), kDense = judged_kind(false);
    const hsb_block_kind open = open_kind(p.stored);
    parallel_for(p.threads, plan.heads, [&](std::int64_t head, int) {
        std::int32_t *map = p.map + head * plan.map_blocks;
        std::fill(map, map + plan.blocks, kDense);
        std::fill(map, map + p.first_eligible, open);
        std::fill(map + p.last_eligible, map + plan.blocks, open);
        if (plan.needs_losses()) {
            const Loss *loss = scratch.loss + head * plan.eligible;
            std::int32_t *order = scratch.order + head * plan.eligible;
            for (std::int64_t i = 0; i < plan.eligible; ++i) order[i] = static_cast<std::int32_t>(i);
            std::nth_element(order, order + plan.sparse, order + plan.eligible, [&](std::int32_t a, std::int32_t b) {
                if (less(loss[a], loss[b])) return true;
                return !less(loss[b], loss[a]) && a < b;
            });
            for (std::int64_t i = 0; i < plan.sparse; ++i) map[p.first_eligible + order[i]] = kSparse;
        } else if (plan.sparse > 0) {
            std::fill(map + p.first_eligible, map + p.last_eligible, kSparse);
        }
        std::int32_t next[kBlockKinds] = {};
        next[open] = static_cast<std::int32_t>(head * plan.wide_pages);
        next[kDense] = static_cast<std::int32_t>(head * plan.dense_pages);
        next[kSparse] = static_cast<std::int32_t>(head * plan.sparse_pages);
        for (std::int64_t i = 0; i < plan.blocks; ++i)
            map[i] = entry_of(static_cast<hsb_block_kind>(map[i]), next[map[i]]++);
    });
}

template <class Blocks>
void pack(const hsb_compress_params &p, const Plan &plan, FirstNonFinite &first_bad) {
    const std::int64_t runs = divided_up(plan.blocks, kRun);
    parallel_for(p.threads, plan.heads * runs, [&](std::int64_t item, int) {
        const std::int64_t head = item / runs, first = item % runs * kRun;
        Blocks blocks(p, plan);
        for (std::int64_t i = first; i < std::min(first + kRun, plan.blocks); ++i)
            if (blocks.pack(head, i, p.map[head * plan.map_blocks + i]) >= infinity_bits(p.dtype))
                first_bad.scan(static_cast<const std::uint16_t *>(p.x), plan.begin(head, i), plan.elements(i));
    });
}

template <class Blocks>
void compress(const hsb_compress_params &p, const Plan &plan, const Scratch &scratch, FirstNonFinite &first_bad) {
    if (plan.needs_losses()) find_losses<Blocks>(p, plan, scratch);
    choose(p, plan, scratch);
    pack<Blocks>(p, plan, first_bad);
}

}  // namespace
}  // namespace hsb::cpu

extern "C" int64_t hsb_cpu_compress_workspace(const hsb_compress_params *p) {
    using namespace hsb::cpu;
    std::int64_t bytes = -1;
    hsb::guarded([&] { bytes = Scratch::bytes(Plan(*p)); });
    return bytes;
}

extern "C" int hsb_cpu_compress(const hsb_compress_params *p) {
    using namespace hsb::cpu;
    return hsb::guarded([&] {
        const Plan plan(*p);
        HSB_CHECK(p->x && p->map && p->non_finite, "x, map and non_finite are required");
        HSB_CHECK(p->dense || !plan.dense, "dense is required where blocks stay dense");
        HSB_CHECK(p->sparse || !plan.sparse, "sparse is required where blocks become 2:4");
        HSB_CHECK(p->wide || !plan.wide, "wide is required where blocks stay wide");
        HSB_CHECK(p->workspace || !plan.needs_losses(), "workspace is required");
        const Scratch scratch(plan, p->workspace);
        FirstNonFinite first_bad(p->dtype);
        dispatch_isa(p->isa, [&](auto tag) {
            using Isa = typename decltype(tag)::type;
            if (p->scale)
                compress<NarrowBlocks<Isa>>(*p, plan, scratch, first_bad);
            else if (plan.is_fitted)
                compress<FittedBlocks<Isa>>(*p, plan, scratch, first_bad);
            else
                compress<PlainBlocks<Isa>>(*p, plan, scratch, first_bad);
        });
        *p->non_finite = first_bad.index();
    });
}
