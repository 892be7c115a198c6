#include "prefill.h"

#include <cmath>
#include <cstring>

#include "aligned.h"
#include "api.h"
#include "blind.h"
#include "cuda/page_pool.cuh"
#include "estimate.h"
#include "sm80/plan.h"
#include "sm90/fp8/narrow.h"
#include "sm90/plan.h"

namespace hsb::cuda::prefill {
namespace {

void check(const hsb_prefill_params &p) {
    HSB_CHECK(p.k.stored != HSB_STORED_INT4 && p.v.stored != HSB_STORED_INT4, "prefill reads no pages of int4");
    check_paged_shape(p);
    check_prefill_axes(p);
    stored_blocks(p, kBlock);  // checks them
    HSB_CHECK(p.q_len > 0 && p.q_len <= p.seq, "q_len must be 1 to seq");
    HSB_CHECK(p.seq < (1 << 30), "seq must be below 2^30");
    HSB_CHECK(!p.lengths || (!p.position && p.k.map && p.v.map), "a cache that grows needs maps, and evicts nothing");
    HSB_CHECK(p.lengths || !p.q_lengths, "q_lengths belong to lengths");
    HSB_CHECK(p.path == HSB_PATH_AUTO || p.path == HSB_PATH_SM80 || p.path == HSB_PATH_SM90, "path is not an hsb_path");
}

// Only sm_90a's own machine code has wgmma.sp; in anything else, the PTX for newer chips among it, the kernel is a trap.
// CMake's name for it contains "90a".
bool can_take_sm90(const Device &device) {
    return device.capability == 90 && std::strstr(hsb_cuda_architectures(), "90a") != nullptr;
}

// What kinds of pages one of K and V may have.
struct PageKinds {
    int kinds = 0;
    float sparse = 0.0f;  // share of 2:4 pages: half, where there are others too

    explicit PageKinds(const hsb_pages &pages) {
        int sparse_kinds = 0;
        for_each_kind([&](auto kind) {
            if (!kind.pool(pages)) return;
            ++kinds;
            sparse_kinds += kind.kIsSparse;
        });
        if (kinds > 0) sparse = static_cast<float>(sparse_kinds) / static_cast<float>(kinds);
    }
};

// Of a cache that grows as if it were full, for how long its sequences are only the device knows. The shorter, the
// better for sm80: so short sequences in a large cache may go by sm90, some microseconds longer, but never long ones by
// sm80.
bool is_sm90_faster(const hsb_prefill_params &p, const Device &device) {
    if (p.position) return true;  // what is known of times is of all blocks
    const PageKinds k(p.k), v(p.v);
    const Work work{p.head_dim,
                    p.q_len,
                    p.seq,
                    static_cast<std::int64_t>(p.batch) * p.q_heads,
                    (k.sparse + v.sparse) / 2,
                    k.kinds > 1 || v.kinds > 1,
                    device.multiprocessors};
    const bool three = sm90::takes_three_groups(!work.mixed, work.sparse > 0);
    return estimate_sm80(work, sm80::Tile::kQueries) >=
           estimate_sm90(work, three ? sm90::ThreeGroups::kTileQueries : sm90::TwoGroups::kTileQueries);
}

hsb_path choose_path(const hsb_prefill_params &p, const Device &device) {
    const bool can = can_take_sm90(device);
    HSB_CHECK(p.path != HSB_PATH_SM90 || can,
              "path sm90 needs a GPU of compute capability 9.0 and code for 90a in the library: take sm80, or auto");
    if (p.k.stored == HSB_STORED_FP8) {
        HSB_CHECK(
            can && p.path != HSB_PATH_SM80,
            "pages of e4m3 need path sm90, on a GPU of compute capability 9.0 and with code for 90a in the library");
        return HSB_PATH_SM90;
    }
    if (p.path != HSB_PATH_AUTO) return static_cast<hsb_path>(p.path);
    return can && is_sm90_faster(p, device) ? HSB_PATH_SM90 : HSB_PATH_SM80;
}

// For wide pages, which 8-bit products take as e4m3; no path keeps anything else between its CTAs.
std::int64_t workspace_bytes(const hsb_prefill_params &p) {
    for (const hsb_pages *pages : {&p.k, &p.v})
        HSB_CHECK(!pages->wide || pages->wide_pages > 0, "wide_pages must say how many there are");
    return narrowed_bytes(p.k, p.head_dim) + narrowed_bytes(p.v, p.head_dim);
}

void run(const hsb_prefill_params &p) {
    check(p);
    with_stored(p.k.stored, [&](auto stored) {
        check_pages<decltype(stored)>(p.k, p.head_dim);
        check_pages<decltype(stored)>(p.v, p.head_dim);
    });
    HSB_CHECK(p.q && p.out && p.lse, "q, out and lse are required");
    HSB_CHECK(workspace_bytes(p) == 0 || (p.workspace && is_aligned(p.workspace, 64)),
              "a workspace is required, 64-byte aligned");
    for (const void *tensor : {p.q, static_cast<const void *>(p.out)})
        HSB_CHECK(is_aligned(tensor, 16), "q and out must be 16-byte aligned");
    HSB_CHECK(std::isfinite(p.scale), "scale must be finite");
    check_order_and_shifts(p);
    const Device device = current_device();
    if (choose_path(p, device) == HSB_PATH_SM80)
        run_prefill_sm80(p, device);
    else if (p.k.stored == HSB_STORED_FP8)
        run_prefill_sm90_fp8(p, device);
    else
        run_prefill_sm90(p, device);
    if (p.position || p.lengths) blank_blind_queries(p);
}

}  // namespace
}  // namespace hsb::cuda::prefill

extern "C" int64_t hsb_cuda_prefill_workspace(const hsb_prefill_params *p) {
    std::int64_t bytes = -1;
    hsb::guarded([&] {
        hsb::cuda::prefill::check(*p);
        bytes = hsb::cuda::prefill::workspace_bytes(*p);
    });
    return bytes;
}

extern "C" int hsb_cuda_prefill(const hsb_prefill_params *p) {
    return hsb::guarded([&] { hsb::cuda::prefill::run(*p); });
}
