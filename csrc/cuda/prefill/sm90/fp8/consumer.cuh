// A consumer warpgroup: its queries against all pages of the tile.
//
//   product with K      |  0  |     |  1  |     |  2  |
//   softmax             |     |  0  |     |  1  |     |  2
//   product with V      |     |     |     |  0        |  1
//   barrier                         |  0  |     |  1  |
//
// A page's probabilities are published by a barrier, of which the group learns, too, whether one of them passed its reference.
// That, and all else that a page takes besides its products and its softmax, is done while the next page's product with K is
// under way: a warp does one thing after the other, so that nothing else could hide it.
#pragma once

#include "cuda/prefill/sm90/group.cuh"
#include "cuda/prefill/sm90/pages.cuh"
#include "cuda/ptx/place.cuh"
#include "cuda/queries.cuh"
#include "shared_memory.h"
#include "softmax.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::prefill::sm90::fp8 {

template <class T, int HeadDim, int Pair>
class Consumer {
public:
    // `first_row`: of the head's queries, the group's first.
    __device__ Consumer(const Arguments &a, SharedMemory<CutFor<Pair>, HeadDim> *shared, Group group, int lane,
                        int head, int first_row)
        : a_(a), shared_(shared), base_(ptx::shared_address(shared)), group_(group), head_(head), first_row_(first_row),
          query_(base_ + Shared::query_at(group.index)), probability_(base_ + Shared::probability_at(group.index)) {
        // By way of a shuffle, or the compiler would compute it anew for every page.
        lane_word_ = __shfl_sync(~0u, group.warp * 128 + lane * 4, lane);
    }

    __device__ __forceinline__ void attend(int first_page) {
        load_queries();
        softmax_.clear();
        until_move_ = a_.moved ? first_move() : 1 << 30;
#pragma unroll
        for (int i = 0; i < kScores; ++i) s_[i] = 0.0f;
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
#pragma unroll
            for (int i = 0; i < kScores; ++i) out_[half][i] = 0.0f;
        ptx::fence_proxy_async_shared();
        group_.sync();

        // A loop for one kind, too: its start is where the zeroes above are written, and not while the first product is
        // under way.
        const int *const counts = shared_->counts;
        const int begin = pair_kind_at<PagesOf<Pair>>(a_, first_page);
#pragma unroll 1
        for (int i = 0; i < kPairKinds; ++i) {
            const int kind = begin ^ i, pages = counts[kind];
            if (pages == 0) continue;
            if constexpr (Pair != kAnyPair)
                run<Pair>(pages, true);
            else
                run_as<0>(kind, pages, i == 0);
        }
        finish();
    }

private:
    using Cut = CutFor<Pair>;
    using Shared = SharedMemory<Cut, HeadDim>;
    using Softmax = fp8::Softmax<Cut, kLinearTiles<HeadDim, Pair>>;
    using Scores = typename Softmax::Scores;
    using References = typename Softmax::References;
    static constexpr int kGroupQueries = Cut::kGroupQueries;
    static constexpr int kScores = Softmax::kScores, kColumns = Softmax::kColumns;
    static constexpr int kHalves = HeadDim / 64;  // O^T in tiles of 64 rows
    static constexpr int kChunks = HeadDim / 8;   // of 16 bytes, in a query as it is given
    static constexpr int kBuffer = Shared::kProbabilityBytes;

    // Of a kernel for one kind, whose pages' bytes are known, all but the number of stages is a constant.
    __device__ __forceinline__ RingShape ring() const {
        if constexpr (Pair == kAnyPair)
            return a_.ring;
        else
            return {stage_bytes(KeyKind<Pair>::page_bytes(HeadDim)), stage_bytes(ValueKind<Pair>::page_bytes(HeadDim)),
                    a_.ring.stages};
    }
    __device__ __forceinline__ std::uint32_t key(int stage) const { return base_ + Shared::key_at(ring(), stage); }
    __device__ __forceinline__ std::uint32_t value(int stage) const { return base_ + Shared::value_at(ring(), stage); }
    // By one thread of the group, once a barrier has told it that all warps are done.
    __device__ __forceinline__ void release_key(int stage) const {
        if (lane_word_ == 0) ptx::mbarrier_arrive(Shared::key_empty_at(base_, stage));
    }
    __device__ __forceinline__ void release_value(int stage) const {
        if (lane_word_ == 0) ptx::mbarrier_arrive(Shared::value_empty_at(base_, stage));
    }

    // In queries.cuh.
    __device__ __forceinline__ void load_queries() const;

    // Of this group's first query, in chunks of 8 values.
    __device__ __forceinline__ std::int64_t first_chunk() const {
        return (static_cast<std::int64_t>(head_) * a_.q_len + first_row_) * kChunks;
    }
    __device__ __forceinline__ uint4 *at_query_chunk(int row, int chunk) const {
        return reinterpret_cast<uint4 *>(reinterpret_cast<unsigned char *>(shared_) + Shared::query_at(group_.index) +
                                         swizzled_chunk<HeadDim>(row, chunk));
    }
    __device__ __forceinline__ uint4 *at_output_chunk(int row, int chunk) const {
        return reinterpret_cast<uint4 *>(reinterpret_cast<unsigned char *>(shared_) + Shared::query_at(group_.index) +
                                         chunk / 8 * Shared::kOutputPanelBytes + swizzled_chunk<128>(row, chunk % 8));
    }

    // ---- products -----------------------------------------------------------------------------------------------
    // What a kind's products take in registers of the page.
    template <class Kind>
    using KeyRegisters = typename Kind::template KeyRegisters<HeadDim>;
    template <class Kind>
    using ValueRegisters = typename Kind::template ValueRegisters<HeadDim>;

    template <class Kind>
    __device__ __forceinline__ void load_key(KeyRegisters<Kind> &registers, std::uint32_t page) const {
        Kind::template load_key<HeadDim>(registers, page, group_.warp, lane_word_);
    }
    template <class Kind>
    __device__ __forceinline__ void load_value(ValueRegisters<Kind> &registers, std::uint32_t page) const {
        Kind::template load_value<HeadDim>(registers, page, lane_word_);
    }

    // S^T = K Q^T, as a group of its own.
    template <class Kind>
    __device__ __forceinline__ void start_scores(std::uint32_t page, const KeyRegisters<Kind> &registers) {
        const ptx::WgmmaTile<HeadDim> q(query_);
        ptx::wgmma_fence();
        Kind::template multiply_key<HeadDim>(s_, page, registers, q);
        ptx::wgmma_commit();
    }

    // O^T += V^T P^T, as a group of its own.
    template <class Kind>
    __device__ __forceinline__ void start_output(std::uint32_t page, const ValueRegisters<Kind> &registers) {
        const ptx::WgmmaTile<kBlock> p(probability_ + buffer_ * kBuffer);
        ptx::wgmma_fence();
        Kind::template multiply_value<HeadDim>(out_, page, registers, p);
        ptx::wgmma_commit();
    }

    __device__ __forceinline__ void wait_output() {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) ptx::wgmma_wait<0>(out_[half]);
    }

    // ---- moved sums, in moved.cuh -------------------------------------------------------------------------------
    template <class F>
    __device__ __forceinline__ void over_moved(F f) const;
    __device__ __forceinline__ void move_sums(bool first);
    __device__ __forceinline__ void add_moved();
    __device__ __forceinline__ void scale_moved(std::uint32_t factors) const;

    // After which of the tile's pages, in the order in which they come, this group moves sums first. Groups take turns.
    __device__ __forceinline__ int first_move() const {
        return kMovePages - 1 - group_.index * (kMovePages / Cut::kGroups);
    }

    // ---- softmax ------------------------------------------------------------------------------------------------
    __device__ __forceinline__ void mask(int stage) {
        const int block = shared_->block_at[stage], lane = ptx::lane();
        mask_future_pairs(
            s_, a_.past(head_) + first_row_ + lane % 4 * 2 - (block * kBlock + group_.warp * 16 + lane / 4 * 2));
    }

    // What scores are multiplied by: as pages take it, which may be kShiftedScale, and as it is.
    __device__ __forceinline__ float scale() const {
        return ptx::load_shared_f32(Shared::scale_at(base_, group_.index));
    }
    __device__ __forceinline__ float own_scale() const {
        return ptx::load_shared_f32(Shared::scale_at(base_, group_.index) + 4);
    }
    __device__ __forceinline__ bool is_shifted() const { return scale() == kShiftedScale; }
    __device__ __forceinline__ std::uint32_t shift_of(int query) const {
        return Shared::shift_at(base_, group_.index, query);
    }

    // The page's probabilities, into the current buffer; whether one is too large. Where this lane stores is derived every
    // time: there is no register left to keep it.
    __device__ __forceinline__ bool store_probabilities(float log2_scale) {
        const std::uint32_t to = swizzled_chunk<kBlock>(lane_word_ / 4 % 32, lane_word_ / 128);
        return Softmax::is_too_large(
            softmax_.store_probabilities(s_, probability_ + buffer_ * kBuffer + to, log2_scale, a_.never));
    }

    // Whether one of a page's probabilities is too large is what the barrier tells that publishes them. Where ptxas would spill
    // for that, in kernels for any pair, a thread says so in shared memory before the barrier.
    static constexpr bool kAnswers = Pair != kAnyPair;
    __device__ __forceinline__ std::uint32_t flag() const { return Shared::rises_at(base_, group_.index, buffer_); }
    __device__ __forceinline__ void say() const { ptx::store_shared_u32(flag(), 1); }
    __device__ __forceinline__ bool any_said() const {
        group_.sync();
        return ptx::load_shared_u32(flag()) != 0;
    }
    __device__ __forceinline__ void forget() const {
        group_.sync();  // all have read it
        ptx::store_shared_u32(flag(), 0);
    }

    template <class Kind>
    __device__ __forceinline__ void scores_again(int stage) {
        KeyRegisters<Kind> registers;
        load_key<Kind>(registers, key(stage));
        start_scores<Kind>(key(stage), registers);
        ptx::wgmma_wait<0>(s_);
        mask(stage);
    }

    // In references.cuh.
    __device__ __forceinline__ void set_references();
    template <class Kind>
    __device__ __forceinline__ void raise(int stage, bool moved);

    // ---- pages --------------------------------------------------------------------------------------------------
    // run() for a kind of pair that is known only now, one of First and on.
    template <int First>
    __device__ __forceinline__ void run_as(int kind, int pages, bool first) {
        if constexpr (First == kLastPair)
            run<First>(pages, first);
        else if constexpr (!is_pair(First))
            run_as<First + 1>(kind, pages, first);
        else if (kind == First)
            run<First>(pages, first);
        else
            run_as<First + 1>(kind, pages, first);
    }

    // A run of pages of one kind. `first`: of the tile.
    template <int RunPair>
    __device__ __forceinline__ void run(int pages, bool first) {
        using Key = KeyKind<RunPair>;
        using Value = ValueKind<RunPair>;
        KeyRegisters<Key> key_registers;
        ValueRegisters<Value> value_registers;
        ptx::mbarrier_wait(Shared::key_full_at(base_, stage_.index), stage_.parity);
        load_key<Key>(key_registers, key(stage_.index));
        start_scores<Key>(key(stage_.index), key_registers);
        ptx::wgmma_wait<0>(s_);
        if (pages <= Cut::kEdgePages) mask(stage_.index);
        if (first) set_references();
        float log2_scale = scale();
        int before = stage_.index;
        // The last page stands in for the one after it, whose scores are not used: no product is in a branch.
        RingPosition next = pages > 1 ? stage_.next(a_.ring.stages) : stage_;
#pragma unroll 1
        for (int left = pages;;) {
            // Whether the next pages have come is asked early, for the answer takes a while.
            const bool key_there = ptx::mbarrier_try_wait(Shared::key_full_at(base_, next.index), next.parity);
            const bool value_there = ptx::mbarrier_try_wait(Shared::value_full_at(base_, stage_.index), stage_.parity);
            const bool mine = store_probabilities(log2_scale);
            if (!kAnswers && mine) say();
            if (!value_there) ptx::mbarrier_wait(Shared::value_full_at(base_, stage_.index), stage_.parity);
            if (!key_there) ptx::mbarrier_wait(Shared::key_full_at(base_, next.index), next.parity);
            load_key<Key>(key_registers, key(next.index));
            wait_output();
            // Not before: the product that has just ended had them too.
            load_value<Value>(value_registers, value(stage_.index));
            start_scores<Key>(key(next.index), key_registers);

            const bool rises = kAnswers ? group_.any(mine) : any_said();
            if (left < pages) release_value(before);
            const RingPosition after = left > 2 ? next.next(a_.ring.stages) : next;
            --until_move_;
            ptx::fence_proxy_async_shared();  // for what all warps have stored
            ptx::wgmma_wait<0>(s_);
            if (left <= Cut::kEdgePages + 1) mask(next.index);
            if (rises || until_move_ < 0) {
                const int page = before_ + pages - left;  // of the tile's, in the order in which they come
                if (rises) {
                    if (!kAnswers) forget();
                    raise<Key>(stage_.index, page > first_move());
                    load_value<Value>(value_registers, value(stage_.index));  // none to keep these in meanwhile
                    scores_again<Key>(next.index);
                    log2_scale = scale();
                    ptx::fence_proxy_async_shared();
                }
                if (until_move_ < 0) {
                    move_sums(page == first_move());
                    until_move_ = kMovePages - 1;
                }
            }
            release_key(stage_.index);
            if (left == 1) break;
            start_output<Value>(value(stage_.index), value_registers);
            before = stage_.index;
            stage_ = next;
            next = after;
            buffer_ ^= 1;
            --left;
        }
        start_output<Value>(value(stage_.index), value_registers);
        wait_output();
        if constexpr (Pair == kAnyPair) {
            group_.sync();
            release_value(stage_.index);
            before_ += pages;
        }
        stage_ = stage_.next(a_.ring.stages);
        buffer_ ^= 1;
    }

    // Sums over all tokens, then the log-sum-exp and the output, which goes out by way of the operands' place.
    __device__ __forceinline__ void finish() {
        float scale[kHalves][2], shift[kHalves][2] = {};  // of channels; asked for before what takes longer
        const std::int64_t first = static_cast<std::int64_t>(head_ / a_.group) * HeadDim + group_.warp * 16;
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const std::int64_t at = first + half * 64 + ptx::lane() / 4 + i * 8;
                scale[half][i] = __ldg(a_.value_scale + at);
                if (a_.value_shift) shift[half][i] = __ldg(a_.value_shift + at);
            }
        group_.template over_tokens<kGroupQueries>(softmax_.sum, 0, probability_,
                                                   [](float x, float y) { return x + y; });
        group_.sync();  // the output takes the place that these went through
        const int lane = ptx::lane();
        if (group_.warp == 0 && lane < 4) {
            if (a_.key_shift) ptx::mbarrier_wait(Shared::taken_full_at(base_), 0);
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
                constexpr float kLn2 = 0.69314718056f;
                const int query = query_of(c, lane), row = first_row_ + query;
                const float reference = is_shifted() ? -kMargin : softmax_.reference(c);
                const float shift = ptx::load_shared_f32(shift_of(query)) * own_scale();
                const float lse = (ptx::log2_approx(softmax_.sum[c]) - reference - shift) * kLn2;
                const float taken = ptx::load_shared_f32(Shared::taken_at(base_, group_.index * kGroupQueries + query));
                if (row < a_.q_len) a_.lse[static_cast<std::int64_t>(head_) * a_.q_len + row] = lse + taken;
            }
        }
        if (a_.moved != 0 && all_pages() > first_move()) add_moved();
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            const float mean = ptx::reciprocal_approx(softmax_.sum[c]);
            const int i = c / 2 * 4 + c % 2;
#pragma unroll
            for (int half = 0; half < kHalves; ++half)
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    float &o = out_[half][i + row * 2];
                    o = within<T>(o * mean * scale[half][row] + shift[half][row]);
                }
        }
        const std::uint32_t to = query_ + swizzled_chunk<128>(lane / 16 * 8 + lane % 8, 2 * group_.warp + lane / 8 % 2);
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
#pragma unroll
            for (int i = 0; i < kScores; i += 8) {
                const std::uint32_t at = to + half * Shared::kOutputPanelBytes + i / 8 * (16 * 128);
                const auto packed = [&](int k) { return Element<T>::pack(out_[half][k], out_[half][k + 1]); };
                if (i + 8 <= kScores)
                    ptx::stmatrix_x4_trans(at, {packed(i), packed(i + 2), packed(i + 4), packed(i + 6)});
                else
                    ptx::stmatrix_x2_trans(at, packed(i), packed(i + 2));
            }
        group_.sync();
        uint4 *const out = static_cast<uint4 *>(a_.out) + first_chunk();
        // As Group::deal(), of a thread number that is not kept since the tile's start.
        const int thread = ptx::thread_index() % kGroupThreads;
#pragma unroll
        for (int n = 0; n < Group::share(kGroupQueries * kChunks); ++n) {
            const int i = n * kGroupThreads + thread, row = i / kChunks, chunk = i % kChunks;
            if (i < kGroupQueries * kChunks && first_row_ + row < a_.q_len)
                out[row * kChunks + chunk] = *at_output_chunk(row, chunk);
        }
    }
    __device__ __forceinline__ int all_pages() const {
        int all = 0;
#pragma unroll
        for (int i = 0; i < kPairKinds; ++i) all += shared_->counts[i];
        return all;
    }

    const Arguments &a_;
    Shared *const shared_;
    const std::uint32_t base_;
    const Group group_;
    const int head_, first_row_;
    const std::uint32_t query_, probability_;  // this group's, in shared memory
    std::uint32_t lane_word_;                  // a lane's word of a strip's 32
    RingPosition stage_;
    int buffer_ = 0;  // of the two for probabilities
    int before_ = 0;  // pages of earlier runs
    int until_move_;  // pages until sums are moved next
    Scores s_;
    Scores out_[kHalves];
    Softmax softmax_;
};

}  // namespace hsb::cuda::prefill::sm90::fp8

#endif
