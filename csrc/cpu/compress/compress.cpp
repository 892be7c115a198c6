#include "compress.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "api.h"
#include "block_map.h"
#include "cpu/page.h"
#include "cpu/page_pool.h"
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

std::int64_t divided_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// What the params mean, in blocks.
struct Plan {
    std::int64_t heads, full, blocks, eligible, sparse, dense;  // blocks of one head; heads of all batches
    BlockShape shape;

    explicit Plan(const hsb_compress_params &p)
        : heads(std::int64_t{p.batch} * p.kv_heads), full(p.seq / kBlock), blocks(divided_up(p.seq, kBlock)),
          eligible(p.last_eligible - p.first_eligible), sparse(p.sparse_per_head), dense(blocks - sparse),
          shape{p.head_dim, p.operand, p.dtype} {
        HSB_CHECK(p.batch > 0 && p.kv_heads > 0 && p.seq > 0, "batch, kv_heads and seq must be positive");
        HSB_CHECK(p.head_dim == 64 || p.head_dim == 128, "head_dim must be 64 or 128");
        HSB_CHECK(is_element(p.dtype), "dtype must be " + element_names());
        HSB_CHECK(p.operand == HSB_KEY || p.operand == HSB_VALUE, "operand must be K or V");
        HSB_CHECK(0 <= p.first_eligible && p.first_eligible <= p.last_eligible && p.last_eligible <= full,
                  "eligible blocks must be full blocks of the sequence");
        HSB_CHECK(0 <= sparse && sparse <= eligible, "no more blocks can be 2:4 than are eligible");
        HSB_CHECK(heads * blocks < kMostSlots, "more blocks than a map can name: cut the batch");
    }
    // With none or all to be chosen, there is nothing to compare.
    bool needs_losses() const { return 0 < sparse && sparse < eligible; }
};

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

template <class Isa>
void find_losses(const hsb_compress_params &p, const Plan &plan, const Scratch &scratch) {
    const auto *x = static_cast<const std::uint16_t *>(p.x);
    const std::int64_t runs = divided_up(plan.eligible, kRun);
    parallel_for(p.threads, plan.heads * runs, [&](std::int64_t item, int) {
        const std::int64_t head = item / runs, first = item % runs * kRun;
        for (std::int64_t i = first; i < std::min(first + kRun, plan.eligible); ++i) {
            const std::int64_t token = head * p.seq + (p.first_eligible + i) * kBlock;
            const std::uint16_t *block = x + token * p.head_dim;
            const DroppedSum dropped = sum_dropped<Isa>(block, plan.shape);
            scratch.loss[head * plan.eligible + i] =
                is_exact(dropped, p.dtype) ? loss_of(dropped.sum) : exact_loss(block, plan.shape);
        }
    });
}

// Fills the map: with each block's kind, then numbers each kind in ascending order of blocks.
void choose(const hsb_compress_params &p, const Plan &plan, const Scratch &scratch) {
    parallel_for(p.threads, plan.heads, [&](std::int64_t head, int) {
        std::int32_t *map = p.map + head * plan.blocks;
        std::fill(map, map + plan.blocks, HSB_DENSE);
        if (plan.needs_losses()) {
            const Loss *loss = scratch.loss + head * plan.eligible;
            std::int32_t *order = scratch.order + head * plan.eligible;
            for (std::int64_t i = 0; i < plan.eligible; ++i) order[i] = static_cast<std::int32_t>(i);
            std::nth_element(order, order + plan.sparse, order + plan.eligible, [&](std::int32_t a, std::int32_t b) {
                if (less(loss[a], loss[b])) return true;
                return !less(loss[b], loss[a]) && a < b;
            });
            for (std::int64_t i = 0; i < plan.sparse; ++i) map[p.first_eligible + order[i]] = HSB_SPARSE_2_4;
        } else if (plan.sparse > 0) {
            std::fill(map + p.first_eligible, map + p.last_eligible, HSB_SPARSE_2_4);
        }
        std::int32_t next[kBlockKinds] = {};
        next[HSB_DENSE] = static_cast<std::int32_t>(head * plan.dense);
        next[HSB_SPARSE_2_4] = static_cast<std::int32_t>(head * plan.sparse);
        for (std::int64_t i = 0; i < plan.blocks; ++i)
            map[i] = entry_of(static_cast<hsb_block_kind>(map[i]), next[map[i]]++);
    });
}

template <class Isa>
void pack(const hsb_compress_params &p, const Plan &plan, FirstNonFinite &first_bad) {
    const auto *x = static_cast<const std::uint16_t *>(p.x);
    const std::int64_t runs = divided_up(plan.blocks, kRun);
    parallel_for(p.threads, plan.heads * runs, [&](std::int64_t item, int) {
        const std::int64_t head = item / runs, first = item % runs * kRun;
        for (std::int64_t i = first; i < std::min(first + kRun, plan.blocks); ++i) {
            const std::int64_t begin = (head * p.seq + i * kBlock) * p.head_dim;
            const std::int64_t elements = std::min<std::int64_t>(kBlock, p.seq - i * kBlock) * p.head_dim;
            const std::int32_t entry = p.map[head * plan.blocks + i];
            std::byte *page = page_to_pack(p, entry);
            std::uint16_t largest;
            if (i < plan.full) {
                largest = pack_page<Isa>(kind_of(entry), x + begin, page, plan.shape);
            } else {
                std::uint16_t padded[kBlock * 128] = {};  // missing tokens are zero
                std::memcpy(padded, x + begin, static_cast<std::size_t>(elements) * 2);
                largest = pack_page<Isa>(kind_of(entry), padded, page, plan.shape);
            }
            if (largest >= infinity_bits(p.dtype)) first_bad.scan(x, begin, elements);
        }
    });
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
        HSB_CHECK(p->workspace || !plan.needs_losses(), "workspace is required");
        const Scratch scratch(plan, p->workspace);
        FirstNonFinite first_bad(p->dtype);
        dispatch_isa(p->isa, [&](auto tag) {
            using Isa = typename decltype(tag)::type;
            if (plan.needs_losses()) find_losses<Isa>(*p, plan, scratch);
            choose(*p, plan, scratch);
            pack<Isa>(*p, plan, first_bad);
        });
        *p->non_finite = first_bad.index();
    });
}
