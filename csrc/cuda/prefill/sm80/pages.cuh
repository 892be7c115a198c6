// The page pairs of one (batch, kv head), in order, for all warps of a CTA: looks them up in the block map, asks for
// them stages - 1 ahead, hands them over.
#pragma once

#include "cuda/page_pool.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#include "ring_bulk.cuh"
#else
#include "ring_cp_async.cuh"
#endif

namespace hsb::cuda::prefill::sm80 {

// The kinds of 32 pages, one a lane, for all lanes of a warp.
class KindsOf32 {
public:
    KindsOf32() = default;
    __device__ explicit KindsOf32(hsb_block_kind of_lane) {
#pragma unroll
        for (int bit = 0; bit < kUsedKindBits; ++bit) bits_[bit] = __ballot_sync(~0u, of_lane >> bit & 1);
    }
    __device__ hsb_block_kind at(int lane) const {
        int kind = 0;
#pragma unroll
        for (int bit = 0; bit < kUsedKindBits; ++bit) kind |= (bits_[bit] >> lane & 1) << bit;
        return static_cast<hsb_block_kind>(kind);
    }

private:
    std::uint32_t bits_[kUsedKindBits] = {};
};

// K or V of one (batch, kv head): the first sight.pages() from `line` of the map on.
template <int HeadDim, class Sight>
class PageLine {
public:
    __device__ PageLine(const PagePool &pool, std::int32_t line, const Sight &sight)
        : pool_(pool), line_(line), sight_(sight) {}

    // The map's entry; of a page past the end, that of the last.
    __device__ std::int32_t entry(std::int32_t page) const {
        const std::int32_t at = line_ + min(page, sight_.pages() - 1);
        return pool_.entry(at);
    }
    __device__ StoredPage<const unsigned char> page(std::int32_t entry) const {
        return pool_.template page<HeadDim>(entry);
    }
    // Of 32 pages from `first` on; all lanes of the warp call this.
    __device__ KindsOf32 kinds(std::int32_t first) const {
        return KindsOf32(kind_of(entry(first + static_cast<int>(threadIdx.x) % 32)));
    }

private:
    const PagePool &pool_;
    std::int32_t line_;
    const Sight &sight_;
};

// A page pair in shared memory, in one register.
class PagePair {
public:
    __device__ PagePair(int stage, hsb_block_kind key, hsb_block_kind value)
        : bits_(stage << 2 * kUsedKindBits | key << kUsedKindBits | value) {}
    __device__ int stage() const { return bits_ >> 2 * kUsedKindBits; }
    __device__ hsb_block_kind key_kind() const { return static_cast<hsb_block_kind>(bits_ >> kUsedKindBits & kMask); }
    __device__ hsb_block_kind value_kind() const { return static_cast<hsb_block_kind>(bits_ & kMask); }

private:
    static constexpr int kMask = (1 << kUsedKindBits) - 1;
    int bits_;
};

// `Sight`: says how many pages there are (prefill.cuh).
template <int HeadDim, int Warps, class Sight>
class PageStream {
public:
    using Ring = sm80::Ring<Warps>;

    // All warps of the CTA do the same, in everything here.
    __device__ PageStream(const PagePool &key, const PagePool &value, const RingShape &shape, std::uint32_t shared,
                          std::int32_t line, const Sight &sight)
        : key_(key, line, sight), value_(value, line, sight), ring_(shape, shared), stages_(shape.stages),
          sight_(sight), next_(Ring::first_load()) {
        look_up_next();
        ring_.open();  // while the map is on its way
        for (int stage = 0; stage < stages_ - RingShape::kHeld; ++stage) load(stage, stage, 0);
    }

    // Waits for `page`, the pages in turn, and asks for the one that takes the place of the page before, which is
    // released.
    __device__ PagePair wait(std::int32_t page) {
        if (page % 32 == 0) {
            key_kinds_ = key_.kinds(page);
            value_kinds_ = value_.kinds(page);
        }
        ring_.wait_full(stage_, phase_);
        const bool wraps = stage_ < RingShape::kHeld;
        load(page + stages_ - RingShape::kHeld, stage_ - RingShape::kHeld + (wraps ? stages_ : 0),
             wraps ? phase_ : phase_ ^ 1);
        const PagePair pair(stage_, key_kinds_.at(page % 32), value_kinds_.at(page % 32));
        if (++stage_ == stages_) {
            stage_ = 0;
            phase_ ^= 1;
        }
        return pair;
    }

    __device__ std::uint32_t key_address(const PagePair &pair) const { return ring_.key_address(pair.stage()); }
    __device__ std::uint32_t value_address(const PagePair &pair) const { return ring_.value_address(pair.stage()); }

    // This warp is done with the pair.
    __device__ void release(const PagePair &pair) { ring_.release(pair.stage()); }

private:
    __device__ void look_up_next() {
        key_entry_ = key_.entry(next_);
        value_entry_ = value_.entry(next_);
    }

    // Asks for `page`, if it is this warp's to ask for.
    __device__ void load(std::int32_t page, int stage, std::uint32_t phase) {
        if (page != next_) return;
        if (page < sight_.pages())
            ring_.load(stage, phase, key_.page(key_entry_), value_.page(value_entry_));
        else
            ring_.load_nothing();
        next_ += Ring::kLoadStep;
        look_up_next();  // has at least a page's time to come
    }

    PageLine<HeadDim, Sight> key_, value_;
    Ring ring_;
    int stages_;
    const Sight &sight_;
    std::int32_t next_;                     // the page that this warp asks for next, and its
    std::int32_t key_entry_, value_entry_;  // entries in the maps
    KindsOf32 key_kinds_, value_kinds_;     // of the current 32 pages
    int stage_ = 0;                         // of the page to wait for next
    std::uint32_t phase_ = 0;
};

}  // namespace hsb::cuda::prefill::sm80
