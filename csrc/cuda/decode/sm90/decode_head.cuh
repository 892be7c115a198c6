// Decode where each kv head is a cluster's (plan.h): as decode.cuh, and shorter from launch to first page and from last page
// to result, which is most of the time of a cache of some thousand tokens.
#pragma once

#include "cuda/cluster_launch.h"
#include "cuda/decode/attend_page.cuh"
#include "exchange.cuh"
#include "head_queries.cuh"

namespace hsb::cuda::decode {

template <class T, int HeadDim, int Tiles, class Stored, class Axis>
__global__ void __launch_bounds__(max_threads<Tiles>(), 1) decode_head_kernel(const __grid_constant__ Arguments a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    using Queries = HeadQueries<T, HeadDim, Tiles, Stored>;
    using Result = HeadResult<HeadDim, Tiles>;
    extern __shared__ __align__(kStageAlign) unsigned char shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = a.ring.warps;
    const int rank = ptx::cluster_rank(), clusters = a.exchange.clusters;
    const int head = clusters == 1 ? ptx::cluster_index() : ptx::cluster_index() / clusters;
    const int cluster = ptx::cluster_index() - head * clusters, part = cluster * a.exchange.ranks + rank;
    unsigned char *const barriers = shared + a.ring.ring_bytes();
    const std::uint32_t exchange_at = ptx::shared_address(barriers + warps * a.ring.stages * kBarrierBytes);

    Ring ring(a.ring, ptx::shared_address(shared + warp * a.ring.stages * a.ring.stage_bytes()),
              ptx::shared_address(barriers + warp * a.ring.stages * kBarrierBytes), lane);
    const HeadExchange<T, HeadDim, Stored> exchange(a, exchange_at, head, rank);
    ring.open();
    if (threadIdx.x == 0) exchange.open();
    Queries queries(a, head);
    const int line = head * a.blocks;  // the head's first page of all
    HeadCut cut = a.cut;
    int blocks = a.blocks, last_valid = a.last_valid;
    if (a.lengths) {
        const int length = __ldg(a.lengths + head / a.kv_heads);
        blocks = (length + kBlock - 1) / kBlock;
        last_valid = length - (blocks - 1) * kBlock;
        cut = HeadCut::of(blocks, clusters * a.exchange.ranks);
    }
    const int end = line + cut.begin(part + 1);
    int page = line + cut.begin(part) + warp;
    const Elements<Stored> elements(a);
    PageStream pages(elements.template key<HeadDim>(), elements.template value<HeadDim>(), ring, a.ring.stages, page,
                     warps, end, lane);
    prefetch_shifts<HeadDim>(a, head);

    const auto units = queries.make(exchange_at, exchange_at + a.exchange.largest_at());
    std::uint32_t q[Tiles][HeadDim / kStepCols][4];
    Queries::load(q, exchange_at, a.group, lane);
    ptx::cluster_arrive();  // the barrier is open, and what the queries stood in is free
    exchange.score_key_shift(warp, warps, lane);

    Running<HeadDim, Tiles, Axis> running;
    running.clear();
    const int last = line + blocks - 1;
    for (; page < end; page += warps) {
        const int valid = page == last ? last_valid : kBlock;
        const std::uint32_t room = ptx::shared_address(shared + a.ring.room_at(warp));
        attend_page<T>(elements, pages, running, q, units, a.reserve, valid, room, a.group, lane,
                       [&] { pages.refill_key(); });
        pages.refill_value();
        pages.advance();
    }

    const auto result = [&](int of_warp) -> Result & {
        return *reinterpret_cast<Result *>(shared + of_warp * a.ring.stages * a.ring.stage_bytes());
    };
    __syncwarp();
    result(warp).store(running, a.group, lane);
    __syncthreads();
    ptx::cluster_wait();
    exchange.send(warps, units.log2_scale(), result);
    exchange.finish(cluster, units.log2_scale(), units.scale());
#endif
}

// Launches it, where there is a plan for it; says whether there was.
template <class T, int HeadDim, int Tiles, class Stored, class Axis>
bool launch_decode_heads(const hsb_decode_params &p, Arguments a, const Device &device) {
    if (device.capability < 90) return false;
    const auto kernel = decode_head_kernel<T, HeadDim, Tiles, Stored, Axis>;
    const int heads = p.batch * p.kv_heads;
    // All shared memory is a CTA's, however much of it one takes.
    const HeadPlan plan = plan_of(heads, a.blocks, device.multiprocessors, [&](int ranks) {
        return ClusterLaunch(1, ranks, max_threads<Tiles>(), device.shared_bytes).at_once(kernel);
    });
    if (plan.parts() == 0) return false;
    a.cut = HeadCut::of(a.blocks, plan.parts());
    a.exchange = Exchange::of(plan, a.group, HeadDim, kQueryBytes<HeadDim, Tiles>);
    using Result = HeadResult<HeadDim, Tiles>;
    a.ring = choose_ring(stage_page_bytes<Stored, Result>(p.k, HeadDim), stage_page_bytes<Stored, Result>(p.v, HeadDim),
                         device.shared_bytes - a.exchange.bytes(), max_threads<Tiles>() / 32, a.cut.longest(), a.group,
                         Axis::template room_bytes<Stored>(a.group), Stored::kStages);
    const int threads = a.ring.warps * 32;
    if (threads * kQueryPairs<HeadDim, Tiles> < a.group * HeadDim / 2) return false;
    const int shared_bytes = a.ring.ring_bytes() + a.ring.warps * a.ring.stages * kBarrierBytes + a.exchange.bytes();
    ClusterLaunch(heads * plan.clusters, plan.ranks, threads, shared_bytes).run(kernel, p.stream, a);
    return true;
}

}  // namespace hsb::cuda::decode
