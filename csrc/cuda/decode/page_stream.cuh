// The page pairs of one warp, in order: looks them up in the block map, asks for them `stages` ahead, hands them over.
#pragma once

#include "cuda/page_pool.cuh"
#include "cuda/page_product.cuh"
#include "elements.cuh"
#include "line.cuh"
#include "plan.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#include "sm90/ring.cuh"
#else
#include "sm80/ring.cuh"
#endif

namespace hsb::cuda::decode {

// Pages: K's and V's, as elements.cuh has them.
template <class Pages, class Places = MapLine>
class PageStream {
public:
    // Page pairs `first`, first + step, ... below `end`, by a ring that is open.
    __device__ PageStream(const Pages &key, const Pages &value, const Ring &ring, int stages, int first, int step,
                          int end, int lane, const Places &places = {})
        : key_(key), value_(value), ring_(ring), stages_(stages), next_(first), step_(step), end_(end), lane_(lane),
          places_(places) {
        look_up(key_now_, value_now_, next_);
        look_up(key_later_, value_later_, next_ + 32 * step_);
        for (int i = 0; i < stages; ++i) {
            refill_key();
            refill_value();
            advance();
        }
        prefetch_staying(first);
    }

    // The current pair's pages, once they are there; or, of those that stay, where they lie.
    __device__ std::uint32_t wait_key() const {
        ring_.wait_key(stage_, phase_);
        return ring_.key_address(stage_);
    }
    __device__ std::uint32_t wait_value() const {
        ring_.wait_value(stage_, phase_);
        return ring_.value_address(stage_);
    }
    __device__ hsb_block_kind key_kind() const { return kind<0>(); }
    __device__ hsb_block_kind value_kind() const { return kind<1>(); }
    __device__ std::uint32_t value_address() const { return ring_.value_address(stage_); }
    __device__ std::uint32_t stage_address() const { return ring_.key_address(stage_); }

    // The warp is done with the current K page: asks for the one that takes its place. Then the same for V, then
    // advance.
    __device__ void refill_key() { refill<0>(key_, key_now_); }
    __device__ void refill_value() { refill<1>(value_, value_now_); }
    __device__ void advance() {
        next_ += step_;
        if (++at_ == 32) {  // the next 32 map entries, one per lane, came while these were used
            at_ = 0;
            key_now_ = key_later_;
            value_now_ = value_later_;
            look_up(key_later_, value_later_, next_ + 32 * step_);
            prefetch_staying(next_);
        }
        if (++stage_ == stages_) {
            stage_ = 0;
            phase_ ^= 1;
        }
    }

private:
    // Lane l's entries of 32 successive pairs of this warp.
    __device__ __forceinline__ void look_up(std::int32_t &key, std::int32_t &value, int first) const {
        const int page = first + lane_ * step_, place = places_.place(page, end_);
        const auto entry = [&](const Pages &pages) { return !pages.has_map() || page < end_ ? pages.entry(place) : 0; };
        key = entry(key_);
        value = entry(value_);
    }

    // Asks L2 for pages that stay where they lie, as soon as their entries are known: of the 32 pairs from `first` on, whose
    // entries are those of now.
    __device__ __forceinline__ void prefetch_staying(int first) const {
        const bool is = first + lane_ * step_ < end_;
        const auto ask = [&](const Pages &pages, std::int32_t entry) {
            if (!is || !Pages::stays(entry)) return;
            const auto page = pages.page(entry);
            Ring::prefetch(page.at, page.bytes);
        };
        ask(key_, key_now_);
        ask(value_, value_now_);
    }

    static constexpr int kBits = Pages::kBits;
    static constexpr std::uint32_t kKindMask = (1u << kBits) - 1;
    template <int Operand>
    __device__ int kind_bit() const {
        return (stage_ * 2 + Operand) * kBits;
    }
    template <int Operand>
    __device__ hsb_block_kind kind() const {
        return static_cast<hsb_block_kind>(kinds_ >> kind_bit<Operand>() & kKindMask);
    }

    template <int Operand>
    __device__ void refill(const Pages &pages, std::int32_t entries) {
        const std::int32_t entry = __shfl_sync(~0u, entries, at_);
        const auto page = pages.page(entry);
        const int bytes = next_ < end_ ? page.bytes : 0;
        const int bit = kind_bit<Operand>();
        kinds_ = (kinds_ & ~(kKindMask << bit)) | static_cast<std::uint32_t>(kind_of(entry)) << bit;
        if (Pages::stays(entry)) {
            if constexpr (Operand == 0)
                ring_.refer_key(stage_, page.at, bytes);
            else
                ring_.refer_value(stage_, page.at, bytes);
        } else if constexpr (Operand == 0) {
            ring_.load_key(stage_, page.at, bytes);
        } else {
            ring_.load_value(stage_, page.at, bytes);
        }
    }

    const Pages key_, value_;
    Ring ring_;
    int stages_;
    int next_;  // the pair to ask for next; the current one is stages * step before it
    int step_, end_, lane_;
    const Places places_;
    int at_ = 0;  // its place within the 32 map entries
    std::int32_t key_now_, value_now_, key_later_, value_later_;
    std::uint32_t kinds_ = 0;  // of the pages in the ring: of stage 0's K, of its V, of stage 1's K, ..
    static_assert(kMaxStages * 2 * kBits <= 32, "kinds of a ring in one register");
    int stage_ = 0;
    std::uint32_t phase_ = 1;  // filling the ring the first time turns it to 0
};

}  // namespace hsb::cuda::decode
