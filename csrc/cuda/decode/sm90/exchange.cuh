// How the CTAs that share a kv head put their results together: each sends its part of every slice of the outputs to the
// rank that finishes that slice, by stores into its shared memory (plan.h draws what they fill). One way and no reply: a
// rank knows how many bytes will come.
#pragma once

#include "cuda/decode/launch.h"
#include "cuda/decode/result.cuh"
#include "cuda/decode/softmax.cuh"
#include "cuda/element.cuh"
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/unrolled.cuh"

namespace hsb::cuda::decode {

// A warp's result for the CTA, where its first stage was.
template <int HeadDim, int Tiles>
struct HeadResult {
    static constexpr int kStride = HeadDim + 4;  // so that the fragments of a warp fall into different banks
    float out[Tiles * 8][kStride];
    float2 stats[Tiles * 8];

    template <class Axis>
    __device__ __forceinline__ void store(const Running<HeadDim, Tiles, Axis> &running, int group, int lane) {
        running.for_each_output(lane, [&](int head, int dim, float x) {
            if (head < group) out[head][dim] = x;
        });
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int head = 0; head < 2; ++head) {
                const int column = tile * 8 + lane % 4 * 2 + head;
                const float all = sum_over_rows(running.sum[tile][head]);
                if (column < group && lane / 4 == 0) stats[column] = {running.max[tile][head], all};
            }
    }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// Results of several sources, at most Most, by their maxima and sums: what each weighs beside the others.
template <int Most>
struct Weighed {
    float max, sum;  // max is -inf, and sum 0, where no source has a token
    float weight[Most];

    // stats(i): {max, sum}. Those from `count` on are not looked at.
    template <class Stats>
    __device__ __forceinline__ Weighed(int count, float log2_scale, Stats &&stats) {
        float2 of[Most];
        unrolled<Most>([&](int i) { of[i] = stats(min(i, count - 1)); });
        max = of[0].x;
        unrolled<Most>([&](int i) { max = fmaxf(max, of[i].x); });
        const float reference = max == negative_infinity() ? 0.0f : max;
        sum = 0.0f;
        unrolled<Most>([&](int i) {
            weight[i] = i < count ? ptx::exp2_approx((of[i].x - reference) * log2_scale) : 0.0f;
            sum += weight[i] * of[i].y;
        });
    }
    // out(i): two outputs.
    template <class Out>
    __device__ __forceinline__ float2 sum_of(int count, Out &&out) const {
        float2 of[Most];
        unrolled<Most>([&](int i) { of[i] = out(min(i, count - 1)); });
        float2 all{0.0f, 0.0f};
        unrolled<Most>([&](int i) {
            all.x += weight[i] * of[i].x;
            all.y += weight[i] * of[i].y;
        });
        return all;
    }
};

template <class T, int HeadDim, class Stored>
class HeadExchange {
public:
    __device__ HeadExchange(const Arguments &a, std::uint32_t base, int head, int rank)
        : a_(a), base_(base), head_(head), rank_(rank) {}

    // One thread, before anything is sent.
    __device__ void open() const {
        const int mine = outputs();
        const int heads = mine > 0 ? (first() + mine - 1) / HeadDim - first() / HeadDim + 1 : 0;
        ptx::mbarrier_init(barrier(), 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(
            barrier(), a_.exchange.ranks * (mine * static_cast<int>(sizeof(float)) + heads * Exchange::kStatsBytes));
    }

    // Sends what the CTA's warps have. `results(warp)`: HeadResult of it, all of them written.
    template <class Results>
    __device__ __forceinline__ void send(int warps, float log2_scale, Results &&results) const {
        constexpr int kPairs = HeadDim / 2;
        for (int pair = threadIdx.x; pair < a_.group * kPairs; pair += blockDim.x) {
            const int head = pair / kPairs, dim = pair % kPairs * 2, output = 2 * pair;
            const Weighed<kMaxWarps> all(warps, log2_scale, [&](int warp) { return results(warp).stats[head]; });
            const float2 out = all.sum_of(
                warps, [&](int warp) { return *reinterpret_cast<const float2 *>(&results(warp).out[head][dim]); });
            const int to = a_.exchange.rank_of(output), in_slice = output - to * a_.exchange.slice;
            const std::uint32_t remote = ptx::address_at_rank(base_, to);
            const std::uint32_t done = remote + a_.exchange.barrier_at();
            ptx::store_at_rank(remote + out_at(rank_, in_slice), out.x, out.y, done);
            if (dim == 0 || in_slice == 0) ptx::store_at_rank(remote + stats_at(rank_, head), all.max, all.sum, done);
        }
    }

    // Finishes this rank's slice, once all of the cluster have sent theirs. `cluster`: of the head's.
    __device__ __forceinline__ void finish(int cluster, float log2_scale, float scale) const {
        const int mine = outputs();
        int at = threadIdx.x * 2;
        const auto channels = [&] { return ChannelPair(a_, head_, (first() + at) % HeadDim); };
        ChannelPair channel = channels();  // on their way while the others send
        ptx::mbarrier_wait_cluster(barrier(), 0);
        const auto received = [&](Place place) {
            const int ranks = a_.exchange.ranks;
            const Weighed<kMaxRanks> all(ranks, log2_scale, [&](int rank) {
                return ptx::load_shared_f32x2(base_ + stats_at(rank, place.head));
            });
            return Sum{all.max, all.sum, all.sum_of(ranks, [&](int rank) {
                           return ptx::load_shared_f32x2(base_ + out_at(rank, place.at));
                       })};
        };
        if (a_.exchange.clusters == 1) {
            for (; at < mine; at += blockDim.x * 2, channel = channels()) {
                const Place place = place_of(at);
                store(place, received(place), channel, scale);
            }
            return;
        }
        for (int mine_at = at; mine_at < mine; mine_at += blockDim.x * 2) {
            const Place place = place_of(mine_at);
            const Sum sum = received(place);
            __stcg(reinterpret_cast<float2 *>(partial(cluster) + place.output()), sum.out);
            if (place.dim == 0 || mine_at == 0) __stcg(partial_stats(cluster, place.head), float2{sum.max, sum.sum});
        }
        if (!is_last()) return;
        for (; at < mine; at += blockDim.x * 2, channel = channels()) {
            const Place place = place_of(at);
            const int clusters = a_.exchange.clusters;
            Sum sum{negative_infinity(), 0.0f, {0.0f, 0.0f}};
            for (int base = 0; base < clusters; base += kMaxRanks) {
                const int count = min(clusters - base, kMaxRanks);
                const Weighed<kMaxRanks> all(count, log2_scale,
                                             [&](int i) { return __ldcg(partial_stats(base + i, place.head)); });
                const float2 out = all.sum_of(count, [&](int i) {
                    return __ldcg(reinterpret_cast<const float2 *>(partial(base + i) + place.output()));
                });
                sum.add({all.max, all.sum, out}, log2_scale);
            }
            store(place, sum, channel, scale);
        }
    }

    // What K's shift takes off the scores of the query heads whose lse this rank writes; a warp for each.
    __device__ __forceinline__ void score_key_shift(int warp, int warps, int lane) const {
        const int mine = outputs();
        for (int head = (first() + HeadDim - 1) / HeadDim + warp; head * HeadDim < first() + mine; head += warps) {
            const float taken = Shifts<T, HeadDim, Stored>(a_, head_, head, lane).score() * a_.given_scale;
            if (lane == 0) ptx::store_shared_f32(base_ + score_at(head), taken);
        }
    }

private:
    // What two neighbouring channels of V get back.
    struct ChannelPair {
        float2 shift{0.0f, 0.0f}, factor{1.0f, 1.0f};

        __device__ ChannelPair(const Arguments &a, int head, int dim) {
            const std::int64_t at = static_cast<std::int64_t>(head) * HeadDim + dim;
            if (a.value_shift) shift = __ldg(reinterpret_cast<const float2 *>(a.value_shift + at));
            if constexpr (Stored::kHasScale) factor = __ldg(reinterpret_cast<const float2 *>(a.value_scale + at));
        }
    };

    // One of the slice's pairs of outputs.
    struct Place {
        int at, head, dim;
        __device__ int output() const { return head * HeadDim + dim; }
    };
    __device__ Place place_of(int at) const {
        const int output = first() + at;
        return {at, output / HeadDim, output % HeadDim};
    }
    // Of a pair of outputs of some tokens, and these tokens' maximum and sum.
    struct Sum {
        float max, sum;
        float2 out;

        __device__ __forceinline__ void add(const Sum &other, float log2_scale) {
            const float higher = fmaxf(max, other.max);
            const float reference = higher == negative_infinity() ? 0.0f : higher;
            const float mine = ptx::exp2_approx((max - reference) * log2_scale);
            const float others = ptx::exp2_approx((other.max - reference) * log2_scale);
            max = higher;
            sum = sum * mine + other.sum * others;
            out.x = out.x * mine + other.out.x * others;
            out.y = out.y * mine + other.out.y * others;
        }
    };

    __device__ __forceinline__ void store(const Place &place, const Sum &sum, const ChannelPair &channel,
                                          float scale) const {
        const std::int64_t q_head = static_cast<std::int64_t>(head_) * a_.group + place.head;
        T *const to = static_cast<T *>(a_.out) + q_head * HeadDim + place.dim;
        if (sum.sum == 0.0f) {  // of a sequence without tokens
            *reinterpret_cast<std::uint32_t *>(to) = 0;
            if (place.dim == 0) a_.lse[q_head] = negative_infinity();
            return;
        }
        const float inverse = Stored::kUnit / sum.sum;
        *reinterpret_cast<std::uint32_t *>(to) =
            Element<T>::pack(within<T>(fmaf(sum.out.x * inverse, channel.factor.x, channel.shift.x)),
                             within<T>(fmaf(sum.out.y * inverse, channel.factor.y, channel.shift.y)));
        // The sum is 2^reserve too low.
        constexpr float kLn2 = 0.693147181f;
        if (place.dim == 0)
            a_.lse[q_head] = sum.max * scale + (logf(sum.sum) + a_.reserve * kLn2) +
                             ptx::load_shared_f32(base_ + score_at(place.head));
    }

    // Partial results of one of the head's clusters, in L2.
    __device__ float *partial(int cluster) const {
        const std::int64_t slot = static_cast<std::int64_t>(head_) * a_.exchange.clusters + cluster;
        return a_.partials + slot * partial_floats(a_.group, HeadDim);
    }
    __device__ float2 *partial_stats(int cluster, int head) const {
        return reinterpret_cast<float2 *>(partial(cluster) + a_.group * HeadDim) + head;
    }
    // Hands in what this CTA's threads have written for the slice; whether the head's other clusters have done so before.
    // The counter is 0 again for the next call.
    __device__ __forceinline__ bool is_last() const {
        const unsigned others = a_.exchange.clusters - 1;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned *const counter = a_.counters + static_cast<std::int64_t>(head_) * kMaxRanks + rank_;
            ptx::store_shared_u32(base_ + a_.exchange.last_at(), atomicInc(counter, others) == others);
            __threadfence();
        }
        __syncthreads();
        return ptx::load_shared_u32(base_ + a_.exchange.last_at());
    }

    // Of the outputs [group][head_dim], where this rank's slice begins, and how many it has.
    __device__ int first() const { return rank_ * a_.exchange.slice; }
    __device__ int outputs() const { return max(0, min(a_.exchange.slice, a_.group * HeadDim - first())); }

    __device__ std::uint32_t barrier() const { return base_ + a_.exchange.barrier_at(); }
    __device__ int out_at(int rank, int in_slice) const {
        return (rank * a_.exchange.slice + in_slice) * static_cast<int>(sizeof(float));
    }
    __device__ int stats_at(int rank, int head) const {
        return a_.exchange.stats_at() + (rank * a_.group + head) * Exchange::kStatsBytes;
    }
    __device__ int score_at(int head) const { return a_.exchange.score_at() + head * static_cast<int>(sizeof(float)); }

    const Arguments &a_;
    std::uint32_t base_;
    int head_, rank_;
};

#endif

}  // namespace hsb::cuda::decode
