// What the values of K's and V's pages are, as decode's kernels ask for it: of both alike, known when a kernel is compiled; or of
// each its own (StoredApart), as a launch says. That is one kernel for all pairs, which branches at a page, throughout a launch
// the same way: kernels of pairs would be six times as many.
//
//   with_key(run), with_value(run)   run(Stored()) of K's, of V's
//   kHasReserve<T>                   whether probabilities may have a reserve, where q is of type T
//   pack<T>(low, high)               two probabilities as V's products take them
//   token_of_row(row)                which token of a block a row of scores is
//   smallest_page_bytes(head_dim)    of any page
//   key<HeadDim>(), value<HeadDim>() where pages lie: what PageStream takes
#pragma once

#include "cuda/page_pool.cuh"
#include "launch.h"

namespace hsb::cuda::decode {

// Pages of a pool, whose kinds are of a list.
template <class Kinds>
struct PooledPages {
    static constexpr int kBits = kKindBits<Kinds>;
    const PagePool &pool;

    __device__ bool has_map() const { return pool.map; }
    __device__ __forceinline__ std::int32_t entry(int place) const { return pool.entry<Kinds>(place); }
    static __device__ __forceinline__ bool stays(std::int32_t entry) {
        return with_kind<Kinds>(kind_of(entry), [](auto of_kind) { return of_kind.kStays; });
    }
};

// Of sizes that their kinds say.
template <int HeadDim, class Kinds>
struct PagesOf : PooledPages<Kinds> {
    __device__ __forceinline__ StoredPage<const unsigned char> page(std::int32_t entry) const {
        return this->pool.template page<HeadDim, Kinds>(entry);
    }
};

// Of any kind, and of sizes that a launch says.
struct SizedPages : PooledPages<StoredFp8::Kinds> {
    static_assert(StoredFp8::Kinds::kCount == kBlockKinds, "every kind, by number");
    const PageBytes &bytes;

    __device__ __forceinline__ StoredPage<const unsigned char> page(std::int32_t entry) const {
        const hsb_block_kind kind = kind_of(entry);
        return {pool.pools[kind] + slot_of(entry) * bytes.of_kind[kind], bytes.of_kind[kind]};
    }
};

template <class Stored>
class Elements {
    using Kinds = typename Stored::Kinds;

public:
    __device__ explicit Elements(const Arguments &a) : a_(a) {}

    template <class Run>
    __device__ __forceinline__ decltype(auto) with_key(Run &&run) const {
        return run(Stored());
    }
    template <class Run>
    __device__ __forceinline__ decltype(auto) with_value(Run &&run) const {
        return run(Stored());
    }
    template <class T>
    using Product = Element<typename Stored::template Product<T>>;
    template <class T>
    static constexpr bool kHasReserve = Product<T>::kHasReserve || Stored::kReserve > 0.0f;
    template <class T>
    __device__ __forceinline__ std::uint32_t pack(float low, float high) const {
        return Product<T>::pack(low, high);
    }
    static __device__ int token_of_row(int row) { return Stored::token_of_row(row); }
    static constexpr int smallest_page_bytes(int head_dim) { return cuda::smallest_page_bytes(head_dim, Kinds()); }

    template <int HeadDim>
    __device__ PagesOf<HeadDim, Kinds> key() const {
        return {{a_.k}};
    }
    template <int HeadDim>
    __device__ PagesOf<HeadDim, Kinds> value() const {
        return {{a_.v}};
    }

private:
    const Arguments &a_;
};

template <>
class Elements<StoredApart> {
public:
    __device__ explicit Elements(const Arguments &a) : a_(a) {}

    template <class Run>
    __device__ __forceinline__ decltype(auto) with_key(Run &&run) const {
        return with_one(a_.key_stored, run);
    }
    template <class Run>
    __device__ __forceinline__ decltype(auto) with_value(Run &&run) const {
        return with_one(a_.value_stored, run);
    }
    template <class T>
    static constexpr bool kHasReserve = true;
    template <class T>
    __device__ __forceinline__ std::uint32_t pack(float low, float high) const {
        const std::uint32_t narrow = Element<OfE4m3>::pack(low, high);
        return a_.value_stored == HSB_STORED_16 ? Element<T>::pack(low, high) : narrow;
    }
    __device__ int token_of_row(int row) const { return a_.key_stored == HSB_STORED_16 ? row : fp8_token_of_row(row); }
    static constexpr int smallest_page_bytes(int head_dim) { return int4_sparse_page_bytes(head_dim); }

    template <int HeadDim>
    __device__ SizedPages key() const {
        return {{a_.k}, a_.key_bytes};
    }
    template <int HeadDim>
    __device__ SizedPages value() const {
        return {{a_.v}, a_.value_bytes};
    }

private:
    template <class Run>
    static __device__ __forceinline__ decltype(auto) with_one(std::int32_t stored, Run &&run) {
        if (stored == HSB_STORED_INT4) return run(StoredInt4());
        if (stored == HSB_STORED_FP8) return run(StoredFp8());
        return run(Stored16());
    }

    const Arguments &a_;
};

}  // namespace hsb::cuda::decode
