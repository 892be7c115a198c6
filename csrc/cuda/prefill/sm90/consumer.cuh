// A consumer warpgroup: its queries against all pages of the tile.
//
//   product with K      |  0  |  1        |  2        |  3
//   softmax             |     |  0        |  1        |  2          the tensor cores work for other warpgroups
//   product with V      |     |        0  |        1  |        2    meanwhile
#pragma once

#include "cuda/ptx/place.cuh"
#include "cuda/queries.cuh"
#include "group.cuh"
#include "pages.cuh"
#include "softmax.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::prefill::sm90 {

template <class T, int HeadDim, int Pair>
class Consumer {
public:
    // `first_row`: of the head's queries, the group's first.
    __device__ Consumer(const Arguments &a, SharedMemory<CutFor<Pair>, HeadDim> *shared, Group group, int lane,
                        int head, int first_row)
        : a_(a), shared_(shared), base_(ptx::shared_address(shared)), group_(group), head_(head), first_row_(first_row),
          query_(base_ + Shared::query_at(group.index)), probability_(base_ + Shared::probability_at(group.index)) {
        // The address of this lane's row for stmatrix, and of its word of a strip's 32. By way of a shuffle, or the
        // compiler would compute them anew for every page.
        const int row = lane / 16 * 8 + lane % 8, chunk = 2 * group.warp + lane / 8 % 2;
        store_at_ = __shfl_sync(~0u, swizzled_chunk<128>(row, chunk), lane);
        lane_word_ = __shfl_sync(~0u, group.warp * 128 + lane * 4, lane);
    }

    __device__ __forceinline__ void attend(int first_page) {
        load_queries();
        softmax_.clear();
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
        const int begin = pair_kind_at(a_, first_page);
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
    using Softmax = sm90::Softmax<Cut>;
    using Scores = typename Softmax::Scores;
    using References = typename Softmax::References;
    static constexpr int kGroupQueries = Cut::kGroupQueries;
    static constexpr int kScores = Softmax::kScores, kColumns = Softmax::kColumns;
    static constexpr int kHalves = HeadDim / 64;  // O^T in tiles of 64 rows
    static constexpr int kChunks = HeadDim / 8;   // of 16 bytes, in a query
    static constexpr int kAllChunks = kGroupQueries * kChunks;
    static constexpr int kPanel = Shared::kPanelBytes;

    __device__ __forceinline__ std::uint32_t key(int stage) const { return base_ + Shared::key_at(a_.ring, stage); }
    __device__ __forceinline__ std::uint32_t value(int stage) const { return base_ + Shared::value_at(a_.ring, stage); }
    __device__ __forceinline__ void release_key(int stage) const {
        ptx::mbarrier_arrive(Shared::key_empty_at(base_, stage));
    }
    __device__ __forceinline__ void release_value(int stage) const {
        ptx::mbarrier_arrive(Shared::value_empty_at(base_, stage));
    }

    // All are asked for before the first is waited for.
    __device__ __forceinline__ void load_queries() const {
        if (a_.mirror) return load_mirrored_queries();
        const uint4 *const from = static_cast<const uint4 *>(a_.q) + first_chunk();
        uint4 x[Group::share(kAllChunks)];
        Group::deal<kAllChunks>([&](int n, int i) {
            const int row = i / kChunks, chunk = i % kChunks;
            x[n] = make_uint4(0, 0, 0, 0);
            if (first_row_ + row < a_.q_len) x[n] = __ldg(from + row * kChunks + chunk);
        });
        Group::deal<kAllChunks>([&](int n, int i) {
            *at_query_chunk(i / kChunks, i % kChunks) =
                make_uint4(x[n].x ^ a_.flip, x[n].y ^ a_.flip, x[n].z ^ a_.flip, x[n].w ^ a_.flip);
        });
    }
    // A thread takes 4 chunks of a query, whose places are those of 4 others (cuda/queries.cuh).
    __device__ __forceinline__ void load_mirrored_queries() const {
        constexpr int kHalf = kChunks / 2, kQuarters = kChunks / 4, kAll = kGroupQueries * kQuarters;
        const uint4 *const from = static_cast<const uint4 *>(a_.q) + first_chunk();
        uint4 x[Group::share(kAll)][4];
        Group::deal<kAll>([&](int n, int i) {
            const int row = i / kQuarters, near = i % kQuarters, far = kHalf - 1 - near;
            const int chunks[4] = {near, far, kHalf + near, kHalf + far};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                x[n][j] = make_uint4(0, 0, 0, 0);
                if (first_row_ + row < a_.q_len) x[n][j] = __ldg(from + row * kChunks + chunks[j]);
            }
        });
        Group::deal<kAll>([&](int n, int i) {
            uint4 y[4];
            mirror_chunks(y, x[n]);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                *at_query_chunk(i / kQuarters, i % kQuarters * 4 + j) =
                    make_uint4(y[j].x ^ a_.flip, y[j].y ^ a_.flip, y[j].z ^ a_.flip, y[j].w ^ a_.flip);
        });
    }
    // Of this group's first query, in chunks of 8 values.
    __device__ __forceinline__ std::int64_t first_chunk() const {
        return (static_cast<std::int64_t>(head_) * a_.q_len + first_row_) * kChunks;
    }
    __device__ __forceinline__ uint4 *at_query_chunk(int row, int chunk) const {
        return reinterpret_cast<uint4 *>(reinterpret_cast<unsigned char *>(shared_) + Shared::query_at(group_.index) +
                                         chunk / 8 * kPanel + swizzled_chunk<128>(row, chunk % 8));
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
        const ptx::WgmmaTile<128> q(query_);
        ptx::wgmma_fence();
        Kind::template multiply_key<T, HeadDim, kPanel>(s_, page, registers, q);
        ptx::wgmma_commit();
    }

    // O^T += V^T P^T, as a group of its own.
    template <class Kind>
    __device__ __forceinline__ void start_output(std::uint32_t page, const ValueRegisters<Kind> &registers) {
        const ptx::WgmmaTile<128> p(probability_ + buffer_ * kPanel);
        ptx::wgmma_fence();
        Kind::template multiply_value<T, HeadDim>(out_, page, registers, p);
        ptx::wgmma_commit();
    }

    __device__ __forceinline__ void wait_output() {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) ptx::wgmma_wait<0>(out_[half]);
    }

    // ---- softmax ------------------------------------------------------------------------------------------------
    __device__ __forceinline__ void mask(int stage) {
        const int block = shared_->block_at[stage], lane = ptx::lane();
        mask_future(s_, a_.past(head_) + first_row_ + lane % 4 * 2 - (block * kBlock + group_.warp * 16 + lane / 4));
    }

    // The same either way; with the other one, ptxas spills a register.
    __device__ __forceinline__ float margin() const {
        if constexpr (!Element<T>::kHasReserve) return kMargin;
        return Cut::kGroups == 2 ? kMargin + a_.reserve : a_.margin;
    }
    __device__ __forceinline__ float scale() const { return shifted_ ? kShiftedScale : a_.log2_scale; }
    __device__ __forceinline__ std::uint32_t shift_of(int query) const {
        return Shared::shift_at(base_, group_.index, query);
    }

    // The page's probabilities, into the current buffer; whether any passed its reference.
    __device__ __forceinline__ bool store_probabilities(float log2_scale) {
        return softmax_.template store_probabilities<T>(s_, probability_ + buffer_ * kPanel + store_at_, log2_scale,
                                                        a_.largest, a_.never);
    }

    // Syncs the group; whether any of its threads says so.
    __device__ __forceinline__ bool any_of_group(bool mine) {
        const std::uint32_t flag = Shared::rises_at(base_, group_.index, buffer_);
        if (mine) ptx::store_shared_u32(flag, 1);
        group_.sync();
        if (ptx::load_shared_u32(flag) == 0) return false;
        group_.sync();  // all have read it
        ptx::store_shared_u32(flag, 0);
        return true;
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
    __device__ __forceinline__ void raise(int stage);

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

    // A run of pages of one kind. A page's product with V and the next one's with K start together, after its softmax.
    // `first`: of the tile.
    template <int RunPair>
    __device__ __forceinline__ void run(int pages, bool first) {
        using Key = KeyKind<RunPair>;
        using Value = ValueKind<RunPair>;
        KeyRegisters<Key> key_registers;
        ValueRegisters<Value> value_registers;
        ptx::mbarrier_wait(Shared::key_full_at(base_, stage_.index), stage_.parity);
        load_key<Key>(key_registers, key(stage_.index));
        start_scores<Key>(key(stage_.index), key_registers);
        ptx::wgmma_commit();  // an empty group, in the place of the product with V
        if (first) {
            ptx::wgmma_wait<0>(s_);
            if (pages <= Cut::kEdgePages) mask(stage_.index);
            set_references();
        }
        int before = stage_.index;
#pragma unroll 1
        for (int left = pages;;) {
            // Whether the next pages have come is asked early, for the answer takes a while.
            const RingPosition next = left > 1 ? stage_.next(a_.ring.stages) : stage_;
            const bool key_there = ptx::mbarrier_try_wait(Shared::key_full_at(base_, next.index), next.parity);
            const bool value_there = ptx::mbarrier_try_wait(Shared::value_full_at(base_, stage_.index), stage_.parity);

            const auto wait_for_pages = [&] {
                if (!value_there) ptx::mbarrier_wait(Shared::value_full_at(base_, stage_.index), stage_.parity);
                if (!key_there) ptx::mbarrier_wait(Shared::key_full_at(base_, next.index), next.parity);
            };

            ptx::wgmma_wait<1>(s_);
            if (left <= Cut::kEdgePages) mask(stage_.index);
            // Before or after the softmax: by measurement, about 1 % either way.
            if constexpr (Pair == kAnyPair) wait_for_pages();
            const bool rises = store_probabilities(scale());
            if constexpr (Pair != kAnyPair) wait_for_pages();

            load_key<Key>(key_registers, key(next.index));
            wait_output();
            // Not before: the product that has just ended had them too.
            load_value<Value>(value_registers, value(stage_.index));
            if (any_of_group(rises)) raise<Key>(stage_.index);
            // For what all warps have stored; after the barrier, so that stores still on their way are waited for once.
            ptx::fence_proxy_async_shared();
            if (left == 1) break;

            start_scores<Key>(key(next.index), key_registers);
            start_output<Value>(value(stage_.index), value_registers);
            release_key(stage_.index);
            if (left < pages) release_value(before);
            before = stage_.index;
            stage_ = next;
            buffer_ ^= 1;
            --left;
        }
        start_output<Value>(value(stage_.index), value_registers);
        release_key(stage_.index);
        if (pages > 1) release_value(before);
        wait_output();
        release_value(stage_.index);
        stage_ = stage_.next(a_.ring.stages);
        buffer_ ^= 1;
    }

    // Sums over all tokens, then the log-sum-exp and the output, which goes out by way of the queries' place.
    __device__ __forceinline__ void finish() {
        float value_shift[kHalves][2] = {};  // asked for before what takes longer
        if (a_.value_shift) {
            const float *const from = a_.value_shift + static_cast<std::int64_t>(head_ / a_.group) * HeadDim;
#pragma unroll
            for (int half = 0; half < kHalves; ++half)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    value_shift[half][i] = __ldg(from + half * 64 + group_.warp * 16 + ptx::lane() / 4 + i * 8);
        }
        group_.template over_tokens<kGroupQueries>(softmax_.sum, 0, probability_,
                                                   [](float x, float y) { return x + y; });
        const int lane = ptx::lane();
        if (group_.warp == 0 && lane < 4) {
            if (a_.key_shift) ptx::mbarrier_wait(Shared::taken_full_at(base_), 0);
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
                constexpr float kLn2 = 0.69314718056f;
                const int query = query_of(c, lane), row = first_row_ + query;
                const float reference = shifted_ ? -margin() : softmax_.reference.at(c);
                const float shift = ptx::load_shared_f32(shift_of(query)) * a_.log2_scale;
                const float lse = (ptx::log2_approx(softmax_.sum[c]) - reference - shift) * kLn2;
                const float taken = ptx::load_shared_f32(Shared::taken_at(base_, group_.index * kGroupQueries + query));
                if (row < a_.q_len) a_.lse[static_cast<std::int64_t>(head_) * a_.q_len + row] = lse + taken;
            }
        }
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            const float scale = ptx::reciprocal_approx(softmax_.sum[c]);
            const int i = c / 2 * 4 + c % 2;
#pragma unroll
            for (int half = 0; half < kHalves; ++half) {
                out_[half][i] = within<T>(out_[half][i] * scale + value_shift[half][0]);
                out_[half][i + 2] = within<T>(out_[half][i + 2] * scale + value_shift[half][1]);
            }
        }
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
#pragma unroll
            for (int i = 0; i < kScores; i += 8) {
                const std::uint32_t to = query_ + half * kPanel + store_at_ + i / 8 * (16 * 128);
                const auto packed = [&](int at) { return Element<T>::pack(out_[half][at], out_[half][at + 1]); };
                if (i + 8 <= kScores)
                    ptx::stmatrix_x4_trans(to, {packed(i), packed(i + 2), packed(i + 4), packed(i + 6)});
                else
                    ptx::stmatrix_x2_trans(to, packed(i), packed(i + 2));
            }
        group_.sync();
        uint4 *const to = static_cast<uint4 *>(a_.out) + first_chunk();
        Group::deal<kAllChunks>([&](int, int i) {
            const int row = i / kChunks, chunk = i % kChunks;
            if (first_row_ + row < a_.q_len) to[row * kChunks + chunk] = *at_query_chunk(row, chunk);
        });
    }

    const Arguments &a_;
    Shared *const shared_;
    const std::uint32_t base_;
    const Group group_;
    const int head_, first_row_;
    const std::uint32_t query_, probability_;  // this group's, in shared memory
    std::uint32_t store_at_, lane_word_;
    RingPosition stage_;
    int buffer_ = 0;        // of the two for probabilities
    bool shifted_ = false;  // see kShiftedScale
    Scores s_;
    Scores out_[kHalves];
    Softmax softmax_;
};

}  // namespace hsb::cuda::prefill::sm90

#endif
