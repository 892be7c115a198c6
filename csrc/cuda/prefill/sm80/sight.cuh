// Which queries a warp has, and which of their head's pages they see.
#pragma once

#include "cuda/page.cuh"
#include "cuda/ptx/place.cuh"
#include "cuda/ptx/shared.cuh"
#include "launch.h"

namespace hsb::cuda::prefill::sm80 {

// Which queries are a warp's: plan.h.
template <class Tile>
struct WarpQueries {
    std::int32_t head;        // of batch * q_heads
    std::int32_t tile_first;  // the CTA's first query
    std::int32_t warp, lane;
    std::int32_t first;  // the warp's
    std::int32_t valid;  // so many of the warp's queries exist, if any do
    std::int64_t row;    // of `first`, among all queries

    __device__ explicit WarpQueries(const Arguments &a) {
        const int block = ptx::block_index(), thread = ptx::thread_index();
        head = block % a.heads;
        tile_first = (a.tiles - 1 - block / a.heads) * Tile::kQueries;
        warp = thread / 32;
        lane = thread % 32;
        first = tile_first + warp * Tile::kWarpQueries;
        valid = a.q_len - first;
        row = static_cast<std::int64_t>(head) * a.q_len + first;
    }
};

// What of its head's pages a warp sees, and the CTA.
//   end()       from here on none of its queries sees a page
//   pages()     and from here on none of the CTA's
//   at()        of a page: whether some query of the warp sees it (is_seen), not all do (is_edge), a query of the CTA
//               sees the next one (has_next)
//   ahead()     of half a page, what mask_future() asks of a lane; where all see it, any number that masks nothing
//   valid()     so many of the warp's queries exist, if any do
// Query i sees tokens 0 .. i + past.
template <class Tile, bool LooksUp>
class Sight {
public:
    __device__ Sight(const Arguments &a, const WarpQueries<Tile> &own) : Sight(a.q_len, a.seq - a.q_len, own) {}
    __device__ Sight(std::int32_t queries, std::int32_t past, const WarpQueries<Tile> &own) {
        const std::int32_t last = min(own.first + Tile::kWarpQueries, queries) - 1;
        whole_ = (own.first + past + 1) / kBlock;
        end_ = own.valid > 0 ? (last + past) / kBlock + 1 : 0;
        pages_ = (min(own.tile_first + Tile::kQueries, queries) - 1 + past) / kBlock + 1;
    }
    struct Page {};
    __device__ Page at(std::int32_t /*page*/) const { return {}; }
    __device__ bool is_seen(Page, std::int32_t page) const { return page < end_; }
    __device__ bool is_edge(Page, std::int32_t page) const { return page >= whole_; }
    __device__ bool has_next(Page, std::int32_t page) const { return page + 1 < pages_; }
    __device__ std::int32_t whole() const { return whole_; }
    __device__ std::int32_t end() const { return end_; }
    __device__ std::int32_t pages() const { return pages_; }
    template <int Half>
    __device__ std::int32_t ahead(const Arguments &a, std::int32_t page, int lane) const {
        const std::int32_t token = page * kBlock + Half * 32 + lane / 4;
        return WarpQueries<Tile>(a).first + a.seq - a.q_len + lane % 4 * 2 - token;
    }
    __device__ std::int32_t valid(const WarpQueries<Tile> &own) const { return own.valid; }

private:
    std::int32_t whole_, end_, pages_;
};

// Where blocks are evicted, or the device alone knows how long a sequence is, all of this is looked up (position.cuh),
// and cannot be derived anew. There is no register to keep it in: it lies in shared memory, and is read for each page.
template <class Tile>
class Sight<Tile, true> {
public:
    __device__ Sight(const Arguments &a, WarpQueries<Tile> own) {
        const std::int32_t queries = a.extents.queries(own.head, a.q_len);
        const std::int32_t past = tokens_before(a, own.head);
        own.valid = queries - own.first;
        const Sight<Tile, false> blocks(queries, past, own);
        const std::int32_t line = own.head / a.group * a.positions.stored;
        // Whether the last query before `end` sees a token: not all of a sequence that is shorter than its queries do.
        const auto sees = [&](std::int32_t end) { return min(end, queries) + past > 0; };
        // By all lanes, for that is how they look.
        const std::int32_t pages = own.tile_first < queries && sees(own.tile_first + Tile::kQueries)
                                       ? a.positions.before(line, blocks.pages())
                                       : 0;
        const std::int32_t end = sees(own.first + Tile::kWarpQueries) ? a.positions.before(line, blocks.end()) : 0;
        const std::int32_t whole = min(a.positions.before(line, blocks.whole()), end);
        // Evicted before the pages that only some of the warp's queries see: the same of each, for they are two at
        // most.
        static_assert(Tile::kWarpQueries <= kBlock, "its queries end in two blocks");
        const std::int32_t evicted = whole < end ? a.positions.block(line, whole) - whole : 0;
        if (own.lane == 0) {
            ptx::store_shared_u32(address(kWhole), whole);
            ptx::store_shared_u32(address(kEnd), end);
            ptx::store_shared_u32(address(kPages), pages);
            ptx::store_shared_u32(address(kAhead), own.first + past - evicted * kBlock);
            ptx::store_shared_u32(address(kValid), own.valid);
        }
        __syncwarp();
    }
    struct Page {
        bool is_seen, is_edge, has_next;
    };
    // One load, which a lone warp waits for.
    __device__ Page at(std::int32_t page) const {
        const uint4 x = ptx::load_shared_u32x4(address(kWhole));
        return {page < static_cast<std::int32_t>(x.y), page >= static_cast<std::int32_t>(x.x),
                page + 1 < static_cast<std::int32_t>(x.z)};
    }
    __device__ bool is_seen(Page of, std::int32_t /*page*/) const { return of.is_seen; }
    __device__ bool is_edge(Page of, std::int32_t /*page*/) const { return of.is_edge; }
    __device__ bool has_next(Page of, std::int32_t /*page*/) const { return of.has_next; }
    __device__ std::int32_t end() const { return ptx::load_shared_u32(address(kEnd)); }
    __device__ std::int32_t pages() const { return ptx::load_shared_u32(address(kPages)); }
    template <int Half>
    __device__ std::int32_t ahead(const Arguments & /*a*/, std::int32_t page, int lane) const {
        const uint4 x = ptx::load_shared_u32x4(address(kWhole));
        const std::int32_t of_page =
            page >= static_cast<std::int32_t>(x.x) ? static_cast<std::int32_t>(x.w) - page * kBlock : kBlock;
        return of_page + lane % 4 * 2 - (Half * 32 + lane / 4);
    }
    __device__ std::int32_t valid(const WarpQueries<Tile> & /*own*/) const {
        return ptx::load_shared_u32(address(kValid));
    }

private:
    enum Field { kWhole, kEnd, kPages, kAhead, kValid };
    static __device__ std::uint32_t address(Field field) {
        __shared__ __align__(16) std::int32_t sights[Tile::kWarps][8];
        return ptx::shared_address(sights) + (ptx::thread_index() & ~31) + field * 4;
    }
};

}  // namespace hsb::cuda::prefill::sm80
