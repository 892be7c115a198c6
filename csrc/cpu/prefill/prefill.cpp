#include "prefill.h"

#include <algorithm>

#include "aligned.h"
#include "api.h"
#include "attention_shape.h"
#include "cpu/fit.h"
#include "cpu/page_pool.h"
#include "cpu/pool.h"
#include "cpu/simd/isa.h"

namespace hsb::cpu::prefill {
namespace {

// Tiles that share each unpacked page. Enough that unpacking is small beside the products (a pair of pages unpacks
// in 0.1 to 0.2 of the time that one tile of 48 lanes spends on it), few enough that the tiles' Q^T and O^T (1 KiB a
// lane at head_dim 128) stay in half of a 1 MiB L2; twice as many measured 1% faster. And at least four units a
// thread, where there are as many, for balance.
std::int64_t tiles_per_unit(std::int64_t tiles, std::int64_t heads, int threads, int lanes) {
    constexpr int kUnitLanes = 384;
    const std::int64_t balanced = tiles * heads / (4 * std::int64_t{threads});
    return std::max<std::int64_t>(1, std::min<std::int64_t>(kUnitLanes / lanes, balanced));
}

// How the work is cut.
struct Plan {
    Plan(const hsb_prefill_params &p, int lanes)
        : heads(std::int64_t{p.batch} * p.kv_heads), rows(p.q_len * (p.q_heads / p.kv_heads)),
          unit_tiles(tiles_per_unit((rows + lanes - 1) / lanes, heads, p.threads, lanes)),
          unit_rows(unit_tiles * lanes), units((rows + unit_rows - 1) / unit_rows) {}

    // Items are handed out in ascending order: the last rows, which see most tokens, come first, of all heads.
    PrefillUnit unit(std::int64_t item) const {
        const std::int64_t first = (units - 1 - item / heads) * unit_rows;
        return {item % heads, first, std::min(first + unit_rows, rows)};
    }

    std::int64_t heads, rows, unit_tiles, unit_rows;
    std::int64_t units;  // per head
};

void check(const hsb_prefill_params &p) {
    check_attention_shape(p);
    check_prefill_axes(p);
    check_fit(p);
    HSB_CHECK(p.q_len > 0 && p.q_len <= p.seq, "q_len must be 1 to seq");
    HSB_CHECK(p.threads > 0, "threads must be positive");
    stored_blocks(p, kBlock);  // checks them
    HSB_CHECK(!p.lengths || !p.position, "a cache that grows evicts nothing");
    for (std::int32_t i = 0; p.lengths && i < p.batch; ++i) {
        HSB_CHECK(0 <= p.lengths[i] && p.lengths[i] <= p.seq, "lengths must be 0 to seq");
        HSB_CHECK(
            !p.q_lengths || (0 <= p.q_lengths[i] && p.q_lengths[i] <= std::min<std::int64_t>(p.q_len, p.lengths[i])),
            "q_lengths must be 0 to q_len, and to the sequence's length");
    }
}

}  // namespace
}  // namespace hsb::cpu::prefill

extern "C" int64_t hsb_cpu_prefill_workspace(const hsb_prefill_params *p) {
    using namespace hsb::cpu;
    using namespace hsb::cpu::prefill;
    std::int64_t bytes = 0;
    const int failed = hsb::guarded([&] {
        check(*p);
        dispatch_isa(p->isa, [&](auto tag) {
            using Isa = typename decltype(tag)::type;
            const Plan plan(*p, prefill_tile_lanes<Isa>());
            const auto tiles = static_cast<int>(plan.unit_tiles);
            bytes = p->threads * static_cast<std::int64_t>(prefill_scratch_bytes<Isa>(p->head_dim, tiles));
        });
    });
    return failed ? -1 : bytes;
}

extern "C" int hsb_cpu_prefill(const hsb_prefill_params *p) {
    using namespace hsb::cpu;
    using namespace hsb::cpu::prefill;
    return hsb::guarded([&] {
        check(*p);
        check_pages(p->k, p->v, p->head_dim);
        HSB_CHECK(p->q && p->out && p->lse && p->workspace, "q, out, lse and workspace are required");
        HSB_CHECK(hsb::is_aligned(p->workspace, 64), "workspace must be 64-byte aligned");
        dispatch_isa(p->isa, [&](auto tag) {
            using Isa = typename decltype(tag)::type;
            const Plan plan(*p, prefill_tile_lanes<Isa>());
            const std::size_t scratch = prefill_scratch_bytes<Isa>(p->head_dim, static_cast<int>(plan.unit_tiles));
            parallel_for(p->threads, plan.heads * plan.units, [&](std::int64_t item, int thread) {
                auto *mine = static_cast<std::byte *>(p->workspace) + thread * scratch;
                prefill_unit<Isa>(*p, plan.unit(item), mine);
            });
        });
    });
}
