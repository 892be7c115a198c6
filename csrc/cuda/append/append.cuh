// Appends tokens to one of K and V of one (batch, kv head), a CTA for each, and judges the blocks that have left the window
// (hsb_append_params).
//
//   tokens of k, v   ->  rows of the open page       as compress stores a token, element by element
//   a block that leaves: open page  ->  x [64][head_dim] in shared memory, in the tensor's own order  ->  its page, by the code
//                        of compress/pack.cuh; the open page is free again
//
// All CTAs of a sequence read its length, and the last to have read it raises it: nobody else does within the kernel. Where K's
// elements differ from V's, each is a launch of its own, of which the later one raises it.
#pragma once

#include <type_traits>

#include "cuda/compress/pack.cuh"
#include "cuda/launch.h"
#include "launch.h"
#include "loss.cuh"
#include "open_page.cuh"

namespace hsb::cuda::append {

constexpr int kThreads = kPackWarps * 32;

template <int HeadDim, class Stored>
struct Shared {
    alignas(16) std::uint16_t x[kBlock * HeadDim];
    PackRoom<Stored> room;
    LossRoom<HeadDim> loss;
};

template <class T, int HeadDim, class Stored, int Operand, bool Mirror>
class Appender {
    using Page = OpenPage<Stored, HeadDim, Operand>;
    using Judged = typename Stored::Judged;
    static constexpr int kGroups = groups_of(Operand);
    using Source = Fitted<T, HeadDim, kGroups, Mirror, Stored::kHasScale, Written>;

public:
    __device__ Appender(const Arguments &a, const Growing &g, int head, Shared<HeadDim, Stored> &shared)
        : a_(a), g_(g), head_(head), shared_(shared), map_(g.map + static_cast<std::int64_t>(head) * a.blocks),
          free_(g.free + static_cast<std::int64_t>(head) * g.pages[Page::kKind]) {}

    __device__ __forceinline__ void append(int length, int count) {
        const int4 state = *reinterpret_cast<const int4 *>(g_.state + head_ * 4);
        open_ = state.x, sparse_ = state.y, narrow_ = state.z, judged_ = state.w;
        const int end = length + count;
        const int left = end - a_.local - (min(count, a_.chunk) - 1);
        const int judged_end = left > 0 ? left / kBlock : 0;  // all before may be judged
        for (int block = length / kBlock; block * kBlock < end; ++block) {
            const int begin = max(length, block * kBlock), stop = min(end, (block + 1) * kBlock);
            const std::int32_t entry = begin == block * kBlock ? open(block) : map_[block];
            write(page_of(entry), begin, stop, length);
            while (a_.first + judged_ < min(judged_end, stop / kBlock)) judge(a_.first + judged_);
        }
        if (threadIdx.x == 0) *reinterpret_cast<int4 *>(g_.state + head_ * 4) = int4{open_, sparse_, narrow_, judged_};
    }

private:
    __device__ std::int32_t entry(hsb_block_kind kind, int page) const {
        return entry_of(kind, head_ * g_.pages[kind] + page);
    }
    __device__ unsigned char *page_of(std::int32_t entry) const {
        return g_.pools[Page::kKind] + slot_of(entry) * Page::kBytes;
    }
    __device__ int channel(int place) const { return channel_at<HeadDim>(place, Mirror); }
    __device__ Channel<T, Stored> fit_of(int channel) const {
        return Channel<T, Stored>(g_.shift, g_.scale, head_ * HeadDim + channel);
    }

    // Takes a page for a block and makes it zero.
    __device__ __forceinline__ std::int32_t open(int block) {
        const std::int32_t found = entry(Page::kKind, free_[open_++]);
        if (threadIdx.x == 0) map_[block] = found;
        unsigned char *const page = page_of(found);
        for (int at = threadIdx.x * kChunkBytes; at < Page::kBytes; at += kThreads * kChunkBytes)
            ptx::store_16(page + at, uint4{0, 0, 0, 0});
        __syncthreads();
        return found;
    }

    // Tokens begin .. stop - 1 of the sequence, all of one block, to its page. Neighbours of a thread are of one token.
    __device__ __forceinline__ void write(unsigned char *page, int begin, int stop, int length) const {
        constexpr int kPairs = HeadDim / 2;
        static_assert(kThreads % kPairs == 0, "a thread's channels are the same of all tokens");
        const int place = threadIdx.x % kPairs * 2;
        const int channels[2] = {channel(place), channel(place + 1)};
        const Channel<T, Stored> low = fit_of(channels[0]), high = fit_of(channels[1]);
        const std::int64_t first = (static_cast<std::int64_t>(head_) * a_.tokens - length) * HeadDim;
        for (int token = begin + threadIdx.x / kPairs; token < stop; token += kThreads / kPairs) {
            const std::int64_t at = first + static_cast<std::int64_t>(token) * HeadDim;
            const std::uint16_t a = __ldg(g_.x + at + channels[0]), b = __ldg(g_.x + at + channels[1]);
            look_at(a, at + channels[0]);
            look_at(b, at + channels[1]);
            const int in_block = token % kBlock;
            unsigned char *const to = page + Page::at(Page::row(in_block, place), Page::col(in_block, place));
            if constexpr (Operand == HSB_VALUE) {
                *reinterpret_cast<std::uint16_t *>(to) = static_cast<std::uint16_t>(low.packed(a));
                *reinterpret_cast<std::uint16_t *>(
                    page + Page::at(Page::row(in_block, place + 1), Page::col(in_block, place + 1))) =
                    static_cast<std::uint16_t>(high.packed(b));
            } else {
                ptx::store_4(to, low.packed(a) | high.packed(b) << 16);
            }
        }
    }
    __device__ void look_at(std::uint16_t x, std::int64_t at) const {
        if ((x & 0x7fffu) >= a_.infinity) atomicCAS(g_.non_finite, ~0ull, static_cast<unsigned long long>(at));
    }

    __device__ __forceinline__ void judge(int block) {
        const std::int32_t from = map_[block];
        __syncthreads();  // the page is written, and nobody reads x any more
        unpack(page_of(from));
        __syncthreads();
        const bool is_sparse = chooses();
        ++judged_;
        if (!is_sparse && !Stored::kHasScale) return;
        const hsb_block_kind kind = judged_kind(is_sparse);
        const std::int32_t to = entry(kind, is_sparse ? sparse_++ : narrow_++);
        pack(page_in<HeadDim, typename Stored::Kinds>(g_.pools, to).at, kind, block);
        --open_;
        if (threadIdx.x == 0) {
            map_[block] = to;
            free_[open_] = static_cast<std::int32_t>(slot_of(from)) - head_ * g_.pages[Page::kKind];
        }
        __syncthreads();  // before the page is taken again
    }

    // The open page's block to shared memory. Of V, threads of a warp are of 8 rows, so that their stores meet few banks twice.
    __device__ __forceinline__ void unpack(const unsigned char *page) const {
        constexpr int kWords = Page::Shape::kCols / 2;
#pragma unroll 8
        for (int i = threadIdx.x; i < Page::Shape::kRows * kWords; i += kThreads) {
            int row = i / kWords, col = i % kWords * 2;
            if constexpr (Operand != HSB_KEY) {
                row = i / (8 * kWords) * 8 + i % 8;
                col = i / 8 % kWords * 2;
            }
            const std::uint32_t pair = *reinterpret_cast<const std::uint32_t *>(page + Page::at(row, col));
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const int at = channel(Page::place(row, col + n));
                shared_.x[Page::token(row, col + n) * HeadDim + at] = fit_of(at).unpacked(pair >> (16 * n));
            }
        }
    }

    // Whether the next block becomes 2:4; notes its loss.
    __device__ __forceinline__ bool chooses() const {
        if (!g_.losses) return g_.ratio > 0.0;
        const std::uint16_t *const weights = g_.weights ? g_.weights + head_ * HeadDim : nullptr;
        const double loss = block_loss<T, HeadDim>(shared_.x, weights, kGroups == HSB_KEY, Mirror, shared_.loss);
        double *const losses = g_.losses + static_cast<std::int64_t>(head_) * a_.blocks;
        int at_most = 0;
        for (int first = 0; first < judged_; first += kThreads) {
            const int i = first + static_cast<int>(threadIdx.x);
            at_most += __syncthreads_count(i < judged_ && losses[i] <= loss);
        }
        __syncthreads();  // all have the loss, whose room is free
        if (threadIdx.x == 0) losses[judged_] = loss;
        const double share = __dmul_rn(g_.ratio, judged_ + 1);
        if (sparse_ > share) return false;
        return sparse_ + 1 < share || at_most < ceil(__dadd_rn(share, -1e-9));
    }

    __device__ __forceinline__ void pack(unsigned char *page, hsb_block_kind kind, int block) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        // What the open page holds has been shifted.
        const FitArgs fit{nullptr, g_.weights, g_.half_fold, g_.scale};
        const PackedBlock<Source> packed{
            shared_.x, kBlock, static_cast<std::uint32_t>(head_), static_cast<std::uint32_t>(block), a_.seq, kind,
            page,      fit};
        if constexpr (Operand == HSB_KEY) {
            using Strip = KeyStrip<HeadDim>;
            const Strip k{warp, warp * kStripRows + lane / Strip::kRowChunks, lane % Strip::kRowChunks};
            pack_strip<Judged, HeadDim>(k, packed, shared_.room[warp], lane);
        } else if constexpr (Operand == kHeadDimValue) {
            using Strip = RowStrip<HeadDim>;
            const Strip v{warp, warp * kStripRows + lane / Strip::kRowChunks * Strip::kLoads, lane % Strip::kRowChunks};
            pack_strip<Judged, HeadDim>(v, packed, shared_.room[warp], lane);
        } else if (warp < kPackParts<HeadDim, HSB_VALUE>) {
            pack_value<Judged, HeadDim>(value_runs(warp, lane), packed, shared_.room[warp], lane);
        }
    }

    const Arguments &a_;
    const Growing &g_;
    int head_;
    Shared<HeadDim, Stored> &shared_;
    std::int32_t *const map_, *const free_;
    int open_, sparse_, narrow_, judged_;  // hsb_growing::state
};

// One CTA a multiprocessor is as many registers as a thread may have: fewer, which ptxas takes by itself, spill.
template <class T, int HeadDim, class Stored>
__global__ void __launch_bounds__(kThreads, 1) append_kernel(const __grid_constant__ Arguments a) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    auto &shared = *reinterpret_cast<Shared<HeadDim, Stored> *>(shared_bytes);
    const int operand = a.operand + blockIdx.x % a.operands, head = blockIdx.x / a.operands;
    const int sequence = head / a.kv_heads;
    const int length = *const_cast<volatile const std::int32_t *>(a.lengths + sequence);
    const int wanted = a.counts ? a.counts[sequence] : static_cast<int>(a.tokens);
    const bool fits = wanted <= a.tokens && wanted <= a.seq - length;
    const int count = fits ? max(wanted, 0) : 0;  // the device alone knows `counts`
    __syncthreads();
    if (a.raises && threadIdx.x == 0) {
        __threadfence();
        const unsigned others = a.operands * a.kv_heads - 1;
        if (atomicInc(a.arrived + sequence, others) == others) {  // it is 0 again
            a.lengths[sequence] = length + count;
            if (!fits) a.overflow[sequence] = 1;
        }
    }
    if (count <= 0) return;
    const Growing &g = a.tensors[operand];
    const auto run = [&](auto of_operand, auto mirror) {
        Appender<T, HeadDim, Stored, decltype(of_operand)::value, decltype(mirror)::value>(a, g, head, shared)
            .append(length, count);
    };
    using Straight = std::false_type;
    if (operand == HSB_KEY) {
        if (g.mirror)
            run(std::integral_constant<int, HSB_KEY>(), std::true_type());
        else
            run(std::integral_constant<int, HSB_KEY>(), Straight());
    } else if (g.along_head_dim) {
        run(std::integral_constant<int, kHeadDimValue>(), Straight());
    } else {
        run(std::integral_constant<int, HSB_VALUE>(), Straight());
    }
}

template <class T, int HeadDim, class Stored>
void launch_append(const Arguments &a, void *stream) {
    launch(append_kernel<T, HeadDim, Stored>, static_cast<unsigned>(a.batch * a.kv_heads * a.operands), kThreads,
           sizeof(Shared<HeadDim, Stored>), stream, a);
}

}  // namespace hsb::cuda::append
