#include "probe.h"

#include <atomic>

#include "api.h"
#include "cpu/pool.h"
#include "cpu/simd/isa.h"

// Work is cut as the attention kernels cut theirs: contiguous runs of at least a few pages, handed out in order.
extern "C" int hsb_cpu_probe(const hsb_probe_params *p) {
    using namespace hsb::cpu;
    return hsb::guarded([&] {
        constexpr std::int64_t kPiece = 1 << 20;
        HSB_CHECK(p->src && p->checksum, "src and checksum are required");
        HSB_CHECK(p->bytes > 0 && p->bytes % 4096 == 0, "bytes must be a positive multiple of 4096");
        const auto *src = static_cast<const std::byte *>(p->src);
        auto *dst = static_cast<std::byte *>(p->dst);
        std::atomic<std::uint64_t> all{0};
        dispatch_isa(p->isa, [&](auto tag) {
            using Isa = typename decltype(tag)::type;
            parallel_for(p->threads, (p->bytes + kPiece - 1) / kPiece, [&](std::int64_t piece, int) {
                const std::int64_t first = piece * kPiece;
                const std::int64_t bytes = p->bytes - first < kPiece ? p->bytes - first : kPiece;
                all ^= move_bytes<Isa>(src + first, dst ? dst + first : nullptr, bytes);
            });
        });
        *p->checksum = all;
    });
}
