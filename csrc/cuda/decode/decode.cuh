// Decode attention over pages of any mix of kinds, of elements of 16 bits, of e4m3 or of int4, or of different ones of K and V:
// one query per head against a kv head's whole cache.
//
//   per page pair and warp     K page:  S^T [64 tokens x heads] = K Q^T      Q^T stays in registers
//                              softmax: P^T = 2^(S^T - reference)            in registers (softmax.cuh)
//                              V page:  O^T [head_dim x heads] += V^T P^T    O^T stays in registers
//
// The query heads of a group are the 8 columns of each product (two such columns of 8 for groups of 9 to 16), so a page
// is read once for the whole group. plan.h draws how the work is cut.
#pragma once

#include "attend_page.cuh"
#include "cuda/launch.h"
#include "cuda/ptx/place.cuh"
#include "cuda/queries.cuh"
#include "launch.h"
#include "merge.cuh"
#include "result.cuh"
#include "scaled_queries.cuh"
#include "sm90/decode_head.cuh"
#include "softmax.cuh"

namespace hsb::cuda::decode {

// What a warp leaves for the merge, in the V page of the stage that it has just used, or in the whole stage where pages are
// too small for it.
template <int HeadDim, int Tiles>
struct WarpResult {
    static constexpr int kStride = HeadDim + 4;  // so that the fragments of a warp fall into different banks
    float out[Tiles * 8][kStride];
    float max[Tiles * 8];
    float sum[Tiles * 8];
};

template <int HeadDim, int Tiles, class Stored>
constexpr bool kResultTakesStage = sizeof(WarpResult<HeadDim, Tiles>) > Elements<Stored>::smallest_page_bytes(HeadDim);

template <class Stored, int HeadDim, int Tiles, class Axis>
__device__ __forceinline__ void store_warp_result(WarpResult<HeadDim, Tiles> &to,
                                                  const Running<HeadDim, Tiles, Axis> &running, int lane) {
    running.for_each_output(lane, [&](int head, int dim, float x) { to.out[head][dim] = x; });
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
        for (int head = 0; head < 2; ++head) {
            const int column = tile * 8 + lane % 4 * 2 + head;
            const float sum = sum_over_rows(running.sum[tile][head]);
            if (lane / 4 == 0) {
                to.max[column] = running.max[tile][head];
                to.sum[column] = sum;
            }
        }
}

// One query head's results of all warps of the CTA.
template <int HeadDim, int Tiles>
struct WarpResults {
    static constexpr int kAhead = 8;
    const unsigned char *shared;
    const std::int32_t *at;  // [warps]: MergePlaces
    int head;
    int some;  // a warp that has one

    // Where a warp has no result, another's is read and not taken: a branch would make the loads wait for one another.
    using Result = WarpResult<HeadDim, Tiles>;
    __device__ bool has(int warp) const { return at[warp] >= 0; }
    __device__ const Result &of(int warp) const {
        return *reinterpret_cast<const Result *>(shared + at[has(warp) ? warp : some]);
    }
    __device__ float max(int warp) const {
        const float of_warp = of(warp).max[head];
        return has(warp) ? of_warp : negative_infinity();
    }
    __device__ float sum(int warp) const {
        const float of_warp = of(warp).sum[head];
        return has(warp) ? of_warp : 0.0f;
    }
    __device__ void out(int warp, float (&to)[HeadDim / 32]) const {
        load_dims(to, of(warp).out[head] + threadIdx.x % 32 * (HeadDim / 32));
#pragma unroll
        for (float &x : to) x = has(warp) ? x : 0.0f;
    }
};

// One query head's partial results: of a head that CTA `first` begins, then of those after it.
template <int HeadDim>
struct PartialResults {
    // One round trip to L2 rather than three for the 18 parts that share a head where 8 heads share 132 CTAs.
    static constexpr int kAhead = 8;
    const float *partials;
    int first, group, head;

    __device__ const float *of(int i) const {
        const std::int64_t slot = static_cast<std::int64_t>(first + i) * 2 + (i == 0 ? 1 : 0);
        return partials + slot * partial_floats(group, HeadDim);
    }
    __device__ float max(int i) const { return __ldcg(of(i) + group * HeadDim + head); }
    __device__ float sum(int i) const { return __ldcg(of(i) + group * (HeadDim + 1) + head); }
    __device__ void out(int i, float (&to)[HeadDim / 32]) const {
        load_dims_l2(to, of(i) + head * HeadDim + threadIdx.x % 32 * (HeadDim / 32));
    }
};

template <class T, int HeadDim, int Tiles, class Stored, class Axis>
__global__ void __launch_bounds__(max_threads<Tiles>(), 1) decode_kernel(const __grid_constant__ Arguments a) {
    constexpr bool kTakesStage = kResultTakesStage<HeadDim, Tiles, Stored>;
    extern __shared__ __align__(kStageAlign) unsigned char shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = a.ring.warps;
    const int all_stages = warps * a.ring.stages;
    unsigned char *const barriers = shared + a.ring.ring_bytes();
    auto *const places = reinterpret_cast<MergePlaces *>(barriers + all_stages * kBarrierBytes);
    std::int32_t *const result_at = places->result_at;

    Ring ring(a.ring, ptx::shared_address(shared + warp * a.ring.stages * a.ring.stage_bytes()),
              ptx::shared_address(barriers + warp * a.ring.stages * kBarrierBytes), lane);
    ring.open();
    const Line line(a, lane);
    const int begin = line.begin(), end = line.end();
    if (a.prefetch && begin < end) prefetch_head<T, HeadDim>(a, line.head_of(begin).index);
    const Elements<Stored> elements(a);
    PageStream pages(elements.template key<HeadDim>(), elements.template value<HeadDim>(), ring, a.ring.stages,
                     begin + warp, warps, end, lane, line);
    line.clear_empty<T, HeadDim>();

    int page = begin + warp;             // this warp's current one
    for (int low = begin; low < end;) {  // one segment: the CTA's pages of one head
        const Head of_segment = line.head_of(low);
        const int head = of_segment.index, head_end = of_segment.end;
        const int high = head_end < end ? head_end : end;

        std::uint32_t q[Tiles][HeadDim / kStepCols][4];
        const auto units = queries_of_head<Stored, T, HeadDim>(q, head, a, lane);
        prefetch_shifts<HeadDim>(a, head);

        Running<HeadDim, Tiles, Axis> running;
        running.clear();
        bool refill_later = false;
        for (; page < high; page += warps) {
            // The last V page of a segment, or its last stage, makes room for the warp's result first.
            refill_later = page + warps >= high;
            const int valid = page == head_end - 1 ? of_segment.last_valid : kBlock;
            const std::uint32_t room = ptx::shared_address(shared + a.ring.room_at(warp));
            attend_page<T>(elements, pages, running, q, units, a.reserve, valid, room, a.group, lane, [&] {
                if (!kTakesStage || !refill_later) pages.refill_key();
            });
            if (!refill_later) {
                pages.refill_value();
                pages.advance();
            }
        }

        // Merge the warps.
        std::int32_t at = -1;
        if (refill_later) {
            const std::uint32_t room = kTakesStage ? pages.stage_address() : pages.value_address();
            at = static_cast<std::int32_t>(room - ptx::shared_address(shared));
            __syncwarp();
            store_warp_result<Stored>(*reinterpret_cast<WarpResult<HeadDim, Tiles> *>(shared + at), running, lane);
        }
        if (lane == 0) result_at[warp] = at;
        __syncthreads();
        const Parts sharing = line.parts_of(of_segment);
        const int parts = sharing.last - sharing.first + 1;
        // A part begins its first head elsewhere, or at its own begin, which is looked up anew (ptx/place.cuh).
        const bool begins = line.begin() <= of_segment.begin;
        const std::int64_t q_head = static_cast<std::int64_t>(head) * a.group;
        T *const out = static_cast<T *>(a.out) + q_head * HeadDim;
        float *const partial =
            a.partials + (static_cast<std::int64_t>(blockIdx.x) * 2 + begins) * partial_floats(a.group, HeadDim);
        for (int h = warp; h < a.group; h += warps) {
            const Shifts<T, HeadDim, Stored> shifts(a, head, h, lane);
            const WarpResults<HeadDim, Tiles> results{shared, result_at, h, (low - begin) % warps};
            const auto merged = merge<HeadDim>(results, warps, units.log2_scale(), lane);
            if (parts == 1) {
                store_result(out + h * HeadDim, a.lse + q_head + h, merged, shifts, units.scale(), a, lane);
                continue;
            }
            store_dims(partial + h * HeadDim + lane * (HeadDim / 32), merged.out);
            if (lane == 0) {
                partial[a.group * HeadDim + h] = merged.max;
                partial[a.group * (HeadDim + 1) + h] = merged.sum;
            }
            // Each warp hands in its query head by itself: no barrier of the CTA lies on the way to the result. The
            // counter wraps to 0 with the last arrival, ready for the next call.
            const unsigned others = parts - 1;
            unsigned before = 0;
            __syncwarp();
            if (lane == 0) {
                __threadfence();
                before = atomicInc(a.counters + q_head + h, others);
                __threadfence();
            }
            if (__shfl_sync(~0u, before, 0) == others) {
                const PartialResults<HeadDim> partials{a.partials, sharing.first, a.group, h};
                const auto all = merge<HeadDim>(partials, parts, units.log2_scale(), lane);
                store_result(out + h * HeadDim, a.lse + q_head + h, all, shifts, units.scale(), a, lane);
            }
        }

        low = high;
        if (low < end) {
            __syncthreads();  // all have read the warps' results
            if (refill_later) {
                ring.written();
                if (kTakesStage) pages.refill_key();
                pages.refill_value();
                pages.advance();
            }
        }
    }
}

template <class T, int HeadDim, int Tiles, class Stored, class Axis>
void launch_decode(const hsb_decode_params &p, Arguments a, const Device &device) {
    // Clusters wait for the longest of sequences that are not all as long. Of elements apart, kernels are few instead.
    if constexpr (!std::is_same_v<Stored, StoredApart>)
        if ((!p.lengths || p.batch == 1 || p.alike) &&
            launch_decode_heads<T, HeadDim, Tiles, Stored, Axis>(p, a, device))
            return;
    using Result = WarpResult<HeadDim, Tiles>;
    int key_bytes = 0, value_bytes = 0, room_bytes = 0, stages = 0;
    with_stored(p.k.stored, [&](auto stored) {
        key_bytes = stage_page_bytes<decltype(stored), Result>(p.k, HeadDim);
        stages = stored.kStages;
    });
    with_stored(p.v.stored, [&](auto stored) {
        value_bytes = stage_page_bytes<decltype(stored), Result>(p.v, HeadDim);
        room_bytes = Axis::template room_bytes<decltype(stored)>(a.group);
        if (stored.kStages < stages) stages = stored.kStages;
    });
    a.ring = choose_ring(key_bytes, value_bytes, device.shared_bytes, max_threads<Tiles>() / 32,
                         ceil_div(a.partition.pages, a.partition.parts), a.group, room_bytes, stages);
    const int shared_bytes = a.ring.shared_bytes();
    HSB_CHECK(shared_bytes <= device.shared_bytes, "stages do not fit into shared memory");
    launch(decode_kernel<T, HeadDim, Tiles, Stored, Axis>, a.partition.parts, a.ring.warps * 32, shared_bytes, p.stream,
           a);
}

}  // namespace hsb::cuda::decode
