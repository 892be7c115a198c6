// Where blocks are evicted, which block of the sequence each stored page pair is; where a cache grows, how long its sequences
// are. Null where neither is so.
#pragma once

#include <cstdint>

#include "cuda/page.cuh"
#include "cuda/ptx/place.cuh"

namespace hsb::cuda::prefill {

struct Positions {
    const std::int32_t *of;  // [batch, kv_heads, stored], ascending within a head; or null
    std::int32_t stored;     // blocks of a (batch, kv head) that there are pages of

    // Which block stored page `page` is, of a head whose pages begin at `line` of the map.
    __device__ __forceinline__ std::int32_t block(std::int32_t line, std::int32_t page) const {
        return of ? __ldg(of + line + page) : page;
    }

    // How many of a head's stored pages lie before block `end`. All lanes of a warp call this, and get the same: each
    // looks at one page of 32 that are evenly spread over what is left, so that 3 loads find one of 32,768.
    __device__ __forceinline__ std::int32_t before(std::int32_t line, std::int32_t end) const {
        if (!of) return end;
        std::int32_t low = 0, left = stored < end ? stored : end;  // of `left` pages from `low` on nothing is known
        while (left > 0) {
            const std::int32_t step = (left + 31) / 32, upto = (ptx::lane() + 1) * step;
            const std::int32_t at = low + (upto < left ? upto : left) - 1;
            const int whole = __popc(__ballot_sync(~0u, __ldg(of + line + at) < end));  // steps that lie before it
            if (whole == 32) return low + left;
            low += whole * step;
            left = (left < (whole + 1) * step ? left : (whole + 1) * step) - whole * step - 1;
        }
        return low;
    }
};

struct Extents {
    const std::int32_t *lengths;    // [batch]: tokens of each sequence; or null, and all have as many
    const std::int32_t *q_lengths;  // [batch]: and queries; or null
    std::int32_t q_heads;           // of a sequence

    __device__ __forceinline__ std::int32_t queries(std::int32_t head, std::int32_t q_len) const {
        return q_lengths ? __ldg(q_lengths + head / q_heads) : q_len;
    }
    // Tokens before the first query.
    __device__ __forceinline__ std::int32_t past(std::int32_t head, std::int32_t q_len) const {
        return __ldg(lengths + head / q_heads) - queries(head, q_len);
    }
};

// Tokens before the first query of a head; Arguments: those of a path.
template <class Arguments>
__device__ __forceinline__ std::int32_t tokens_before(const Arguments &a, std::int32_t head) {
    return a.extents.lengths ? a.extents.past(head, a.q_len) : a.seq - a.q_len;
}

}  // namespace hsb::cuda::prefill
