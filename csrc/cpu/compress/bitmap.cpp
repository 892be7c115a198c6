#include "bitmap.h"

#include <algorithm>
#include <array>

#include "api.h"
#include "cpu/pool.h"
#include "cpu/simd/isa.h"
#include "scan.h"

// Tokens of all heads are one row-major sequence, cut into at most kRuns runs:
//
//   tokens   [ run 0 ][ run 1 ][ run 2 ] ...     call 1: bitmaps, and offsets counted from the run's own start; then
//   values   [ a ][ b    ][ c  ] ...                     a sum over runs gives each its start, added to its offsets
//                                                call 2: values, to where the offsets say
namespace hsb::cpu {
namespace {

constexpr std::int64_t kRuns = 1024;   // bounds what the sum over runs keeps on the stack
constexpr std::int64_t kMinRun = 512;  // tokens; 64 to 128 KiB

std::uint32_t units_of(std::uint64_t bits) {  // of kPad values
    return static_cast<std::uint32_t>((__builtin_popcountll(bits) + kPad - 1) / kPad);
}

struct Runs {
    std::int64_t tokens, length, count;
    int chunks;  // per token

    explicit Runs(const hsb_compress_bitmap_params &p)
        : tokens(std::int64_t{p.batch} * p.kv_heads * p.seq), length(std::max(kMinRun, (tokens + kRuns - 1) / kRuns)),
          count((tokens + length - 1) / length), chunks(p.head_dim / kChunk) {}

    std::int64_t first(std::int64_t run) const { return run * length; }
    std::int64_t size(std::int64_t run) const { return std::min(length, tokens - first(run)); }
    std::int64_t first_chunk(std::int64_t run) const { return first(run) * chunks; }
    std::int64_t last_chunk(std::int64_t run) const { return first_chunk(run) + size(run) * chunks; }
};

template <class Isa>
void make_bitmaps(const hsb_compress_bitmap_params &p, const Runs &runs, FirstNonFinite &first_bad) {
    const auto *x = static_cast<const std::uint16_t *>(p.x);
    std::array<std::int64_t, kRuns> start;  // of a run's values, in units of kPad; first its length
    parallel_for(p.threads, runs.count, [&](std::int64_t run, int) {
        const std::int64_t begin = runs.first(run) * p.head_dim;
        std::uint64_t *bitmap = p.bitmap + runs.first_chunk(run);
        if (find_bitmaps<Isa>(x + begin, runs.size(run), p.head_dim, p.keep, bitmap) >= infinity_bits(p.dtype))
            first_bad.scan(x, begin, runs.size(run) * p.head_dim);
        std::uint32_t units = 0;
        for (std::int64_t chunk = runs.first_chunk(run); chunk < runs.last_chunk(run); ++chunk) {
            p.offset[chunk] = units;
            units += units_of(p.bitmap[chunk]);
        }
        start[static_cast<std::size_t>(run)] = units;
    });
    std::int64_t units = 0;
    for (std::int64_t run = 0; run < runs.count; ++run) {
        const std::int64_t length = start[static_cast<std::size_t>(run)];
        start[static_cast<std::size_t>(run)] = units;
        units += length;
    }
    *p.total = units * kPad;
    parallel_for(p.threads, runs.count, [&](std::int64_t run, int) {
        const auto base = static_cast<std::uint32_t>(start[static_cast<std::size_t>(run)]);
        for (std::int64_t chunk = runs.first_chunk(run); chunk < runs.last_chunk(run); ++chunk) p.offset[chunk] += base;
    });
}

template <class Isa>
void fill_values(const hsb_compress_bitmap_params &p, const Runs &runs, FirstNonFinite &first_bad) {
    const auto *x = static_cast<const std::uint16_t *>(p.x);
    auto *values = static_cast<std::uint16_t *>(p.values);
    const auto place = [&](std::int64_t chunk) { return values + std::int64_t{p.offset[chunk]} * kPad; };
    const auto place_after = [&](std::int64_t chunk) { return place(chunk) + units_of(p.bitmap[chunk]) * kPad; };
    parallel_for(p.threads, runs.count, [&](std::int64_t run, int) {
        const std::int64_t chunk = runs.first_chunk(run), begin = chunk * kChunk;
        const std::int64_t chunks = runs.last_chunk(run) - chunk;
        if (gather_values<Isa>(x + begin, chunks, p.bitmap + chunk, place(chunk), place_after(chunk + chunks - 1)) >=
            infinity_bits(p.dtype))
            first_bad.scan(x, begin, chunks * kChunk);
    });
    *p.total = place_after(runs.tokens * runs.chunks - 1) - values;
}

}  // namespace
}  // namespace hsb::cpu

extern "C" int64_t hsb_cpu_compress_bitmap_workspace(const hsb_compress_bitmap_params *) { return 0; }

extern "C" int hsb_cpu_compress_bitmap(const hsb_compress_bitmap_params *p) {
    using namespace hsb;
    using namespace hsb::cpu;
    return guarded([&] {
        HSB_CHECK(p->batch > 0 && p->kv_heads > 0 && p->seq > 0, "batch, kv_heads and seq must be positive");
        HSB_CHECK(p->head_dim == 64 || p->head_dim == 128, "head_dim must be 64 or 128");
        HSB_CHECK(is_element(p->dtype), "dtype must be " + element_names());
        HSB_CHECK(0 <= p->keep && p->keep <= p->head_dim, "keep must be 0 to head_dim");
        HSB_CHECK(p->x && p->bitmap && p->offset && p->total && p->non_finite,
                  "x, bitmap, offset, total and non_finite are required");
        const Runs runs(*p);
        HSB_CHECK(runs.tokens * p->head_dim / kPad <= std::int64_t{UINT32_MAX}, "offsets must fit 32 bits");
        FirstNonFinite first_bad(p->dtype);
        dispatch_isa(p->isa, [&](auto tag) {
            using Isa = typename decltype(tag)::type;
            if (p->values)
                fill_values<Isa>(*p, runs, first_bad);
            else
                make_bitmaps<Isa>(*p, runs, first_bad);
        });
        *p->non_finite = first_bad.index();
    });
}
