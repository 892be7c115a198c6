// A consumer warpgroup: its queries against all pages of the tile.
//
//   product with K      |  0  |  1        |  2        |  3
//   softmax             |     |  0        |  1        |  2          the tensor cores work for other warpgroups
//   product with V      |     |        0  |        1  |        2    meanwhile
#pragma once

#include "cuda/ptx/named_barrier.cuh"
#include "sm90_pages.cuh"
#include "sm90_softmax.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::sm90 {

template <class T, int HeadDim, int Kind>
class Consumer {
public:
    // `group`: which of the CTA's; `warp`: of the group; `first_row`: of the head's queries, the group's first.
    __device__ Consumer(const Arguments &a, unsigned char *shared, int group, int warp, int lane, int head,
                        int first_row)
        : a_(a), shared_(shared), base_(ptx::shared_address(shared)), group_(group), warp_(warp), lane_(lane),
          head_(head), first_row_(first_row), query_(base_ + Layout::query(group)),
          probability_(base_ + Layout::probability(group)) {
        // The address of this lane's row for stmatrix, and of its metadata. By way of a shuffle, or the compiler would
        // compute them anew for every page.
        const int row = lane / 16 * 8 + lane % 8, chunk = 2 * warp + lane / 8 % 2;
        store_at_ = __shfl_sync(~0u, swizzled_chunk<128>(row, chunk), lane);
        metadata_at_ = __shfl_sync(~0u, warp * 128 + lane * 4, lane);
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
        sync();

        // A loop for one kind, too: its start is where the zeroes above are written, and not while the first product is
        // under way.
        const int *const counts = reinterpret_cast<const int *>(shared_ + Layout::kCounts);
        const int begin = first_kind(a_, first_page);
#pragma unroll 1
        for (int i = 0; i < kKinds; ++i) {
            const int kind = begin ^ i, pages = counts[kind];
            if (pages == 0) continue;
            if constexpr (Kind != kAnyKind)
                run<(Kind & 1) != 0, (Kind & 2) != 0>(pages);
            else if (kind == 0)
                run<false, false>(pages);
            else if (kind == 1)
                run<true, false>(pages);
            else if (kind == 2)
                run<false, true>(pages);
            else
                run<true, true>(pages);
        }
        finish();
    }

private:
    using Cut = CutFor<Kind>;
    using Layout = sm90::Layout<Cut, HeadDim>;
    using Softmax = sm90::Softmax<Cut>;
    using Scores = typename Softmax::Scores;
    using References = typename Softmax::References;
    static constexpr int kGroupQueries = Cut::kGroupQueries;
    static constexpr int kScores = Softmax::kScores, kColumns = Softmax::kColumns;
    static constexpr int kHalves = HeadDim / 64;     // O^T in tiles of 64 rows
    static constexpr int kChunks = HeadDim / 8;      // of 16 bytes, in a query
    static constexpr int kKeyPairs = HeadDim / kPairCols;
    static constexpr int kPanel = Layout::kPanelBytes;
    using KeyMetadata = std::uint32_t[kKeyPairs];
    using ValueMetadata = std::uint32_t[kHalves];

    __device__ __forceinline__ void sync() const { ptx::barrier_sync(1 + group_, kGroupThreads); }
    __device__ __forceinline__ std::uint32_t key(int stage) const { return base_ + Layout::key(a_.ring, stage); }
    __device__ __forceinline__ std::uint32_t value(int stage) const { return base_ + Layout::value(a_.ring, stage); }
    __device__ __forceinline__ void release_key(int stage) const {
        ptx::mbarrier_arrive(base_ + Layout::kKeyEmpty + stage * 8);
    }
    __device__ __forceinline__ void release_value(int stage) const {
        ptx::mbarrier_arrive(base_ + Layout::kValueEmpty + stage * 8);
    }

    __device__ __forceinline__ void load_queries() const {
        const uint4 *const from = static_cast<const uint4 *>(a_.q) + first_chunk();
        for (int i = threadIdx.x % kGroupThreads; i < kGroupQueries * kChunks; i += kGroupThreads) {
            const int row = i / kChunks, chunk = i % kChunks;
            uint4 x = make_uint4(0, 0, 0, 0);
            if (first_row_ + row < a_.q_len) x = __ldg(from + row * kChunks + chunk);
            x = make_uint4(x.x ^ a_.flip, x.y ^ a_.flip, x.z ^ a_.flip, x.w ^ a_.flip);
            *at_query_chunk(row, chunk) = x;
        }
    }
    // Of this group's first query, in chunks of 8 values.
    __device__ __forceinline__ std::int64_t first_chunk() const {
        return (static_cast<std::int64_t>(head_) * a_.q_len + first_row_) * kChunks;
    }
    __device__ __forceinline__ uint4 *at_query_chunk(int row, int chunk) const {
        return reinterpret_cast<uint4 *>(shared_ + Layout::query(group_) + chunk / 8 * kPanel +
                                         swizzled_chunk<128>(row, chunk % 8));
    }

    // ---- products -----------------------------------------------------------------------------------------------
    template <bool Sparse>
    __device__ __forceinline__ void load_metadata(KeyMetadata &metadata, std::uint32_t page) const {
        // Of strip `warp`, and its pairs.
        if constexpr (Sparse)
#pragma unroll
            for (int pair = 0; pair < kKeyPairs; ++pair)
                metadata[pair] = ptx::load_shared_u32(page + KeyPage<HeadDim>::metadata_word(0, pair, 0) +
                                                      metadata_at_ + warp_ * (kKeyPairs - 1) * 128);
    }
    template <bool Sparse>
    __device__ __forceinline__ void load_value_metadata(ValueMetadata &metadata, std::uint32_t page) const {
        if constexpr (Sparse)
#pragma unroll
            for (int half = 0; half < kHalves; ++half)
                metadata[half] =
                    ptx::load_shared_u32(page + ValuePage<HeadDim>::metadata_word(4 * half, 0, 0) + metadata_at_);
    }

    // S^T = K Q^T, as a group of its own.
    template <bool Sparse>
    __device__ __forceinline__ void start_scores(std::uint32_t page, const KeyMetadata &metadata) {
        const ptx::WgmmaTile<128> q(query_);
        ptx::wgmma_fence();
        if constexpr (Sparse) {
            const ptx::WgmmaTile<HeadDim> k(page);
#pragma unroll
            for (int pair = 0; pair < kKeyPairs; ++pair) {
                ptx::wgmma_sp_k32<0>(s_, k.at(pair * 64), q.at(pair * kPanel), metadata[pair], pair > 0, T());
                ptx::wgmma_sp_k32<1>(s_, k.at(pair * 64 + 32), q.at(pair * kPanel + 64), metadata[pair], true,
                                           T());
            }
        } else {
            const ptx::WgmmaTile<128> k(page);
#pragma unroll
            for (int step = 0; step < HeadDim / 16; ++step)
                ptx::wgmma_k16(s_, k.at(KeyPage<HeadDim>::dense_chunk(0, step / 4 * 8) + step % 4 * 32),
                                     q.at(step / 4 * kPanel + step % 4 * 32), step > 0, T());
        }
        ptx::wgmma_commit();
    }

    // O^T += V^T P^T, as a group of its own.
    template <bool Sparse>
    __device__ __forceinline__ void start_output(std::uint32_t page, const ValueMetadata &metadata) {
        const ptx::WgmmaTile<128> p(probability_ + buffer_ * kPanel);
        ptx::wgmma_fence();
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
            if constexpr (Sparse) {
                const ptx::WgmmaTile<64> v(page + ValuePage<HeadDim>::value_chunk(half * 64, 0));
                ptx::wgmma_sp_k32<0>(out_[half], v.at(0), p.at(0), metadata[half], true, T());
                ptx::wgmma_sp_k32<1>(out_[half], v.at(32), p.at(64), metadata[half], true, T());
            } else {
                const ptx::WgmmaTile<128> v(page + ValuePage<HeadDim>::dense_chunk(half * 64, 0));
#pragma unroll
                for (int step = 0; step < 4; ++step)
                    ptx::wgmma_k16(out_[half], v.at(step * 32), p.at(step * 32), true, T());
            }
        }
        ptx::wgmma_commit();
    }

    __device__ __forceinline__ void wait_output() {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) ptx::wgmma_wait<0>(out_[half]);
    }

    // ---- softmax ------------------------------------------------------------------------------------------------
    __device__ __forceinline__ void mask(int stage) {
        const int page = reinterpret_cast<const int *>(shared_ + Layout::kPageAt)[stage];
        mask_future(s_, a_.seq - a_.q_len + first_row_ + lane_ % 4 * 2 - (page * kBlock + warp_ * 16 + lane_ / 4));
    }

    __device__ __forceinline__ float scale() const { return shifted_ ? kShiftedScale : a_.log2_scale; }
    __device__ __forceinline__ std::uint32_t shift_of(int query) const {
        return base_ + Layout::kShift + (group_ * kGroupQueries + query) * 4;
    }

    // The page's probabilities, into the current buffer; whether any passed its reference.
    __device__ __forceinline__ bool store_probabilities(float log2_scale) {
        return softmax_.template store_probabilities<T>(s_, probability_ + buffer_ * kPanel + store_at_, log2_scale,
                                                        a_.never);
    }

    // Syncs the group; whether any of its threads says so.
    __device__ __forceinline__ bool any_of_group(bool mine) {
        const std::uint32_t flag = base_ + Layout::kRises + (group_ * 2 + buffer_) * 4;
        if (mine) ptx::store_shared_u32(flag, 1);
        sync();
        if (ptx::load_shared_u32(flag) == 0) return false;
        sync();  // all have read it
        ptx::store_shared_u32(flag, 0);
        return true;
    }

    template <bool Sparse>
    __device__ __forceinline__ void scores_again(int stage) {
        KeyMetadata metadata;
        load_metadata<Sparse>(metadata, key(stage));
        start_scores<Sparse>(key(stage), metadata);
        ptx::wgmma_wait<0>(s_);
        mask(stage);
    }

    // Raises the references that the page's scores passed, scales what has been summed, and stores the page's
    // probabilities again. No product is under way, and both buffers of probabilities are free for the exchange.
    template <bool Sparse>
    __device__ __forceinline__ void raise(int stage) {
        constexpr int kRow = (kGroupQueries + 2) * 4;  // two more, so that lanes fall into different banks
        const std::uint32_t maxima = probability_, highest = maxima + 32 * kRow, shifts = highest + kRow;
        scores_again<Sparse>(stage);  // the exponentials took their registers
        const std::uint32_t mine = maxima + (warp_ * 8 + lane_ / 4) * kRow + lane_ % 4 * 8;
#pragma unroll
        for (int j = 0; j < kScores; j += 4) {
#pragma unroll
            for (int i = j; i < j + 2; ++i)  // takes back what this page has added, by the same arithmetic
                softmax_.sum[column_of(i)] -=
                    softmax_.power(s_[i], i, scale()) + softmax_.power(s_[i + 2], i, scale());
            ptx::store_shared_f32x2(mine + j * 8, fmaxf(s_[j], s_[j + 2]), fmaxf(s_[j + 1], s_[j + 3]));
            stay_in_order();
        }
        sync();

        const int column = threadIdx.x % kGroupThreads;
        bool large = false;
        if (column < kGroupQueries) {
            float max = negative_infinity();
#pragma unroll 8
            for (int row = 0; row < 32; ++row)
                max = fmaxf(max, ptx::load_shared_f32(maxima + row * kRow + column * 4));
            ptx::store_shared_f32(highest + column * 4, max);
            large = max > negative_infinity() && fabsf(max * a_.log2_scale) > References::kLarge;
        }
        const bool was_shifted = shifted_;
        if (any_of_group(large)) shifted_ = true;

#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            const int query = query_of(c, lane_);
            const float max = ptx::load_shared_f32(highest + query * 4), old = softmax_.reference.at(c);
            float now = References::rounded(fminf(old, -fmaf(max, a_.log2_scale, kMargin))), down = old - now;
            if (shifted_) {
                // The shift is the negative of a maximum, exactly, so that what it leaves of that score is 0.
                const float before =
                    was_shifted ? -ptx::load_shared_f32(shift_of(query)) : -(old + kMargin) / a_.log2_scale;
                const float top = fmaxf(max, before);
                now = -kMargin;
                down = was_shifted ? (top - before) * a_.log2_scale : fmaf(top, a_.log2_scale, old + kMargin);
                if (warp_ == 0 && lane_ < 4) ptx::store_shared_f32(shifts + query * 4, -top);
            }
            // Sums may have become infinite; where the old reference was so low, they do not count any more.
            const float factor = ptx::exp2_approx(-down);
            softmax_.sum[c] = down > 60.0f ? 0.0f : softmax_.sum[c] * factor;
            softmax_.reference.set(c, now);
            const int i = c / 2 * 4 + c % 2;
#pragma unroll
            for (int half = 0; half < kHalves; ++half) {
                out_[half][i] *= factor;
                out_[half][i + 2] *= factor;
            }
        }
        sync();
        if (shifted_) {
            if (column < kGroupQueries)
                ptx::store_shared_f32(shift_of(column), ptx::load_shared_f32(shifts + column * 4));
            sync();
        }
        scores_again<Sparse>(stage);
        if (shifted_)
#pragma unroll
            for (int i = 0; i < kScores; ++i) s_[i] += ptx::load_shared_f32(shift_of(query_of(column_of(i), lane_)));
        store_probabilities(a_.log2_scale);
        if (shifted_)
#pragma unroll
            for (int c = 0; c < kColumns; ++c) softmax_.reference.set(c, kShiftedReference);
        sync();
    }

    // Keeps the compiler from moving instructions across, which would need more registers than there are: a branch that
    // is never taken.
    __device__ __forceinline__ void stay_in_order() const {
        if (a_.never) asm volatile("brkpt;");
    }

    // ---- pages --------------------------------------------------------------------------------------------------
    // A run of pages of one kind. A page's product with V and the next one's with K start together, after its softmax.
    template <bool SparseKey, bool SparseValue>
    __device__ __forceinline__ void run(int pages) {
        KeyMetadata key_metadata;
        ValueMetadata value_metadata;
        ptx::mbarrier_wait(base_ + Layout::kKeyFull + stage_.index * 8, stage_.parity);
        load_metadata<SparseKey>(key_metadata, key(stage_.index));
        start_scores<SparseKey>(key(stage_.index), key_metadata);
        ptx::wgmma_commit();  // an empty group, in the place of the product with V
        int before = stage_.index;
#pragma unroll 1
        for (int left = pages;;) {
            // Whether the next pages have come is asked early, for the answer takes a while.
            const Stage next = left > 1 ? stage_.next(a_.ring.stages) : stage_;
            const bool key_there = ptx::mbarrier_try_wait(base_ + Layout::kKeyFull + next.index * 8, next.parity);
            const bool value_there =
                ptx::mbarrier_try_wait(base_ + Layout::kValueFull + stage_.index * 8, stage_.parity);

            ptx::wgmma_wait<1>(s_);
            if (left <= Cut::kEdgePages) mask(stage_.index);
            const bool rises = store_probabilities(scale());

            if (!value_there) ptx::mbarrier_wait(base_ + Layout::kValueFull + stage_.index * 8, stage_.parity);
            if (!key_there) ptx::mbarrier_wait(base_ + Layout::kKeyFull + next.index * 8, next.parity);
            load_metadata<SparseKey>(key_metadata, key(next.index));
            wait_output();
            // Not before: the product that has just ended had its metadata in these registers.
            load_value_metadata<SparseValue>(value_metadata, value(stage_.index));
            if (any_of_group(rises)) raise<SparseKey>(stage_.index);
            // For what all warps have stored; after the barrier, so that stores still on their way are waited for once.
            ptx::fence_proxy_async_shared();
            if (left == 1) break;

            start_scores<SparseKey>(key(next.index), key_metadata);
            start_output<SparseValue>(value(stage_.index), value_metadata);
            release_key(stage_.index);
            if (left < pages) release_value(before);
            before = stage_.index;
            stage_ = next;
            buffer_ ^= 1;
            --left;
        }
        start_output<SparseValue>(value(stage_.index), value_metadata);
        release_key(stage_.index);
        if (pages > 1) release_value(before);
        wait_output();
        release_value(stage_.index);
        stage_ = stage_.next(a_.ring.stages);
        buffer_ ^= 1;
    }

    // Sums over all tokens, then the log-sum-exp and the output, which goes out by way of the queries' place.
    __device__ __forceinline__ void finish() {
        const std::uint32_t sums = probability_;  // f32 [warps][queries]
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            const float sum = sum_over_rows(softmax_.sum[c]);
            if (lane_ < 4) ptx::store_shared_f32(sums + (warp_ * kGroupQueries + query_of(c, lane_)) * 4, sum);
        }
        sync();
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            const int query = query_of(c, lane_), row = first_row_ + query;
            float sum = 0.0f;
#pragma unroll
            for (int warp = 0; warp < 4; ++warp) sum += ptx::load_shared_f32(sums + (warp * kGroupQueries + query) * 4);
            if (warp_ == 0 && lane_ < 4 && row < a_.q_len) {
                constexpr float kLn2 = 0.69314718056f;
                const float reference = shifted_ ? -kMargin : softmax_.reference.at(c);
                const float shift = ptx::load_shared_f32(shift_of(query)) * a_.log2_scale;
                a_.lse[static_cast<std::int64_t>(head_) * a_.q_len + row] =
                    (log2f(sum) - reference - shift) * kLn2;
            }
            const float scale = 1.0f / sum;
            const int i = c / 2 * 4 + c % 2;
#pragma unroll
            for (int half = 0; half < kHalves; ++half) {
                out_[half][i] = within(out_[half][i] * scale, T());
                out_[half][i + 2] = within(out_[half][i + 2] * scale, T());
            }
        }
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
#pragma unroll
            for (int i = 0; i < kScores; i += 8) {
                const std::uint32_t to = query_ + half * kPanel + store_at_ + i / 8 * (16 * 128);
                const auto packed = [&](int at) { return pack(out_[half][at], out_[half][at + 1], T()); };
                if (i + 8 <= kScores)
                    ptx::stmatrix_x4_trans(to, {packed(i), packed(i + 2), packed(i + 4), packed(i + 6)});
                else
                    ptx::stmatrix_x2_trans(to, packed(i), packed(i + 2));
            }
        sync();
        uint4 *const to = static_cast<uint4 *>(a_.out) + first_chunk();
        for (int i = threadIdx.x % kGroupThreads; i < kGroupQueries * kChunks; i += kGroupThreads) {
            const int row = i / kChunks, chunk = i % kChunks;
            if (first_row_ + row < a_.q_len) to[row * kChunks + chunk] = *at_query_chunk(row, chunk);
        }
    }

    const Arguments &a_;
    unsigned char *const shared_;
    const std::uint32_t base_;
    const int group_, warp_, lane_, head_, first_row_;
    const std::uint32_t query_, probability_;  // this group's, in shared memory
    std::uint32_t store_at_, metadata_at_;
    Stage stage_;
    int buffer_ = 0;           // of the two for probabilities
    bool shifted_ = false;     // see kShiftedScale
    Scores s_;
    Scores out_[kHalves];
    Softmax softmax_;
};

}  // namespace hsb::cuda::sm90

#endif
