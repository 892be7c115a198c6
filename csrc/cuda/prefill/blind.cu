#include "blind.h"

#include "cuda/launch.h"
#include "cuda/page.cuh"

namespace hsb::cuda::prefill {
namespace {

constexpr int kThreads = 256;

// A CTA is a query head. What of its queries see nothing comes before all others, or behind.
__global__ void __launch_bounds__(kThreads) blank_kernel(const __grid_constant__ hsb_prefill_params p) {
    std::int64_t begin = 0, blind;
    if (p.position) {
        const int group = p.q_heads / p.kv_heads;
        const std::int64_t first = __ldg(p.position + blockIdx.x / group * p.stored_blocks);
        const std::int64_t before = first * kBlock - (p.seq - p.q_len);
        blind = before < p.q_len ? before : p.q_len;
    } else {
        begin = __ldg(p.q_lengths + blockIdx.x / p.q_heads);
        blind = p.q_len - begin;
    }
    const std::int64_t row = blockIdx.x * p.q_len + begin;
    uint4 *const out = static_cast<uint4 *>(p.out) + row * p.head_dim / 8;
    for (std::int64_t i = threadIdx.x; i < blind * p.head_dim / 8; i += kThreads) out[i] = make_uint4(0, 0, 0, 0);
    for (std::int64_t i = threadIdx.x; i < blind; i += kThreads) p.lse[row + i] = __int_as_float(0xff800000);
}

}  // namespace

void blank_blind_queries(const hsb_prefill_params &p) {
    launch(blank_kernel, static_cast<unsigned>(p.batch * p.q_heads), kThreads, 0, p.stream, p);
}

}  // namespace hsb::cuda::prefill
