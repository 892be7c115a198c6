// CUDA prefill: what the launcher (prefill.cu) hands to the kernel of a path, once it has checked everything, and what
// these have alike.
#pragma once

#include "cuda/page.cuh"
#include "cuda/runtime.h"
#include "error.h"
#include "params.h"

namespace hsb::cuda::prefill {

// Tiles of queries of one head, a CTA each; those of all heads fit a grid.
inline std::int32_t tiles_per_head(const hsb_prefill_params &p, int tile_queries) {
    const std::int64_t tiles = ceil_div(p.q_len, tile_queries);
    HSB_CHECK(tiles * p.batch * p.q_heads < (std::int64_t{1} << 31), "too many tiles of queries: cut the batch");
    return static_cast<std::int32_t>(tiles);
}

// mma.sp with all operands in registers: every GPU from sm_80 on.
void run_prefill_sm80(const hsb_prefill_params &p, const Device &device);

// wgmma.sp, operands in shared memory: sm_90a alone.
void run_prefill_sm90(const hsb_prefill_params &p, const Device &device);

// The same over pages of e4m3, with queries and probabilities in e4m3 too.
void run_prefill_sm90_fp8(const hsb_prefill_params &p, const Device &device);

}  // namespace hsb::cuda::prefill
