// The pages of open blocks, element by element: dense ones of 16 bits, or wide ones in a cache of narrow elements.
#pragma once

#include <cstdint>

#include "cuda/compress/pack.cuh"
#include "cuda/element.cuh"
#include "cuda/page.cuh"

namespace hsb::cuda::append {

// Of K, of V, or of V in groups along head_dim (kHeadDimValue in compress/pack.cuh).
template <class Stored, int HeadDim, int Operand>
struct OpenPage {
    static constexpr bool kIsWide = Stored::kHasScale;
    static constexpr hsb_block_kind kKind = Stored::Open::kKind;
    static constexpr int kBytes = Stored::Open::page_bytes(HeadDim);
    using Shape =
        std::conditional_t<Operand == HSB_KEY, KeyPage<HeadDim>,
                           std::conditional_t<Operand == HSB_VALUE, ValuePage<HeadDim>, HeadDimValuePage<HeadDim>>>;

    // Of the matrix that the page holds: where the element of a token and a place among the channels stands.
    static __device__ __forceinline__ int row(int token, int place) {
        if constexpr (Operand == HSB_KEY)
            return kIsWide ? fp8_row_of_token(token) : token;
        else
            return Operand == HSB_VALUE ? place : place / kGroup;
    }
    static __device__ __forceinline__ int col(int token, int place) {
        if constexpr (Operand == HSB_KEY)
            return place;
        else
            return Operand == HSB_VALUE ? token : token * kGroup + place % kGroup;
    }
    // And which element stands at a row and column.
    static __device__ __forceinline__ int token(int row, int col) {
        if constexpr (Operand == HSB_KEY)
            return kIsWide ? fp8_token_of_row(row) : row;
        else
            return Operand == HSB_VALUE ? col : col / kGroup;
    }
    static __device__ __forceinline__ int place(int row, int col) {
        if constexpr (Operand == HSB_KEY)
            return col;
        else
            return Operand == HSB_VALUE ? row : row * kGroup + col % kGroup;
    }

    // Bytes from the page's start; of an even column, both it and the next one.
    static __device__ __forceinline__ int at(int row, int col) {
        const int odd = col % 2 * 2;
        if constexpr (kIsWide)
            return wide_word<Shape>(row, col / 16, col % 16 / 8, col % 4 / 2, col % 8 / 4) + odd;
        else
            return dense_chunk<Shape>(row, col / 8) + col % 8 / 2 * 4 + odd;
    }
};

// The channel at a place of K's pages (hsb_order).
template <int HeadDim>
__device__ __forceinline__ int channel_at(int place, bool mirror) {
    if (!mirror) return place;
    const int group = place / 4, half = HeadDim / 2, which = place % 4;
    const int low = which % 2 == 0 ? group : half - 1 - group;
    return which < 2 ? low : which == 2 ? half + group : HeadDim - 1 - group;
}

// What belongs to a channel: what is taken off, and what its stored values are in units of.
template <class T, class Stored>
struct Channel {
    float shift, scale;
    bool shifts;

    __device__ __forceinline__ Channel(const float *shift_of, const float *scale_of, int at)
        : shift(shift_of ? __ldg(shift_of + at) : 0.0f), scale(Stored::kHasScale ? __ldg(scale_of + at) : 1.0f),
          shifts(shift_of) {}

    // As compress/fit.cuh stores it, to 16 bits of an open page.
    __device__ __forceinline__ std::uint32_t packed(std::uint16_t x) const {
        if (!Stored::kHasScale && !shifts) return x;
        const float given = Element<T>::unpack(x).x;
        const std::uint32_t stored = Element<T>::pack_saturated(__fsub_rn(given, shift), 0.0f);
        if constexpr (Stored::kHasScale)
            return ptx::fp16x2_saturated(__fmul_rn(Element<T>::unpack(stored).x, inverse()), 0.0f) & 0xffff;
        else
            return stored & 0xffff;
    }
    // And back.
    __device__ __forceinline__ std::uint16_t unpacked(std::uint32_t bits) const {
        if constexpr (Stored::kHasScale) {
            const float value = __fmul_rn(Element<OfE4m3>::unpack(bits & 0xffff).x, scale);
            return static_cast<std::uint16_t>(Element<T>::pack(value, 0.0f));
        } else {
            return static_cast<std::uint16_t>(bits);
        }
    }

private:
    __device__ float inverse() const { return __uint_as_float((254u << 23) - __float_as_uint(scale)); }
};

}  // namespace hsb::cuda::append
