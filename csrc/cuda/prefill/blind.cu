#include "blind.h"

#include "cuda/launch.h"
#include "cuda/page.cuh"

namespace hsb::cuda::prefill {
namespace {

constexpr int kThreads = 256;

// Queries `begin` to `end` of a CTA's head.
__device__ void blank(const hsb_prefill_params &p, std::int64_t begin, std::int64_t end) {
    const std::int64_t row = blockIdx.x * p.q_len, chunks = p.head_dim / 8;
    uint4 *const out = static_cast<uint4 *>(p.out) + row * chunks;
    for (std::int64_t i = begin * chunks + threadIdx.x; i < end * chunks; i += kThreads)
        out[i] = make_uint4(0, 0, 0, 0);
    for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) p.lse[row + i] = __int_as_float(0xff800000);
}

// A CTA is a query head. What of its queries see nothing comes before all others; what it does not have, behind.
__global__ void __launch_bounds__(kThreads) blank_kernel(const __grid_constant__ hsb_prefill_params p) {
    std::int64_t blind, queries = p.q_len;
    if (p.position) {
        const int group = p.q_heads / p.kv_heads;
        const std::int64_t first = __ldg(p.position + blockIdx.x / group * p.stored_blocks);
        blind = first * kBlock - (p.seq - p.q_len);
    } else {
        const std::uint32_t sequence = blockIdx.x / p.q_heads;
        if (p.q_lengths) queries = __ldg(p.q_lengths + sequence);
        blind = queries - __ldg(p.lengths + sequence);
    }
    blank(p, 0, blind < queries ? blind : queries);
    blank(p, queries, p.q_len);
}

}  // namespace

void blank_blind_queries(const hsb_prefill_params &p) {
    launch(blank_kernel, static_cast<unsigned>(p.batch * p.q_heads), kThreads, 0, p.stream, p);
}

}  // namespace hsb::cuda::prefill
