#include "decode.h"

#include <atomic>
#include <new>

#include "aligned.h"
#include "api.h"
#include "attention_shape.h"
#include "cpu/fit.h"
#include "cpu/page_pool.h"
#include "cpu/pool.h"
#include "cpu/simd/isa.h"

namespace hsb::cpu {
namespace {

constexpr std::int64_t kAlign = 64;
using Counter = std::atomic<std::uint32_t>;

std::int64_t counter_bytes(const hsb_decode_params &p) {
    return ceil_div(static_cast<std::int64_t>(p.batch) * p.kv_heads * sizeof(Counter), kAlign) * kAlign;
}

void check_shape(const hsb_decode_params &p) {
    check_attention_shape(p);
    check_fit(p);
    HSB_CHECK(p.threads > 0, "threads must be positive");
    for (std::int32_t i = 0; p.lengths && i < p.batch; ++i)
        HSB_CHECK(0 <= p.lengths[i] && p.lengths[i] <= p.seq, "lengths must be 0 to seq");
}

std::int64_t workspace_bytes(const hsb_decode_params &p) {
    check_shape(p);
    const int group = p.q_heads / p.kv_heads;
    const std::int64_t floats = Splits::most_units(p) * group * partial_floats(p.head_dim) +
                                p.threads * DecodeScratch::floats(group, p.head_dim);
    return counter_bytes(p) + floats * static_cast<std::int64_t>(sizeof(float));
}

// Tokens of a (batch, kv head).
std::int64_t length_of(const hsb_decode_params &p, std::int64_t head) {
    return p.lengths ? p.lengths[head / p.kv_heads] : p.seq;
}

// Runs attend(tag, unit) for every unit (split.h), and combines each kv head's splits once its last one is done.
template <class Attend>
void decode(const hsb_decode_params &p, Attend &&attend) {
    check_shape(p);
    HSB_CHECK(p.q && p.out && p.lse && p.workspace, "q, out, lse and workspace are required");
    HSB_CHECK(is_aligned(p.workspace, kAlign), "workspace must be 64-byte aligned");
    const Splits splits(p);
    const int group = p.q_heads / p.kv_heads;
    const std::int64_t stride = group * partial_floats(p.head_dim);  // partial results of one unit

    auto *counters = static_cast<Counter *>(p.workspace);
    for (std::int64_t head = 0; head < p.batch * p.kv_heads; ++head) new (counters + head) Counter(0);
    auto *partials = reinterpret_cast<float *>(static_cast<std::byte *>(p.workspace) + counter_bytes(p));
    float *scratch = partials + Splits::most_units(p) * stride;

    dispatch_isa(p.isa, [&](auto tag) {
        using Isa = typename decltype(tag)::type;
        parallel_for(p.threads, splits.units(), [&](std::int64_t item, int thread) {
            const Split split = splits[item];
            attend(tag,
                   DecodeUnit{split.head, split.first, split.last, length_of(p, split.head), partials + item * stride,
                              scratch + thread * DecodeScratch::floats(group, p.head_dim)});
            if (counters[split.head].fetch_add(1, std::memory_order_acq_rel) + 1 != split.of_head) return;
            float *const of_head = partials + split.first_of_head * stride;
            for (int h = 0; h < group; ++h)
                combine_splits<Isa>(p, split.head * group + h, of_head + h * partial_floats(p.head_dim), stride,
                                    split.of_head);
        });
    });
}

}  // namespace
}  // namespace hsb::cpu

extern "C" int64_t hsb_cpu_decode_workspace(const hsb_decode_params *p) {
    std::int64_t bytes = -1;
    hsb::guarded([&] { bytes = hsb::cpu::workspace_bytes(*p); });
    return bytes;
}

extern "C" int hsb_cpu_decode(const hsb_decode_params *p) {
    using namespace hsb::cpu;
    return hsb::guarded([&] {
        check_pages(p->k, p->v, p->head_dim);
        decode(*p, [&](auto tag, const DecodeUnit &unit) { attend_pages<typename decltype(tag)::type>(*p, unit); });
    });
}

extern "C" int64_t hsb_cpu_decode_bitmap_workspace(const hsb_decode_params *p) { return hsb_cpu_decode_workspace(p); }

extern "C" int hsb_cpu_decode_bitmap(const hsb_decode_params *p) {
    using namespace hsb::cpu;
    return hsb::guarded([&] {
        HSB_CHECK(p->key_order == HSB_ORDER_ADJACENT && !p->key_shift && !p->value_shift,
                  "bitmaps have no key_order, key_shift or value_shift");
        HSB_CHECK(!p->k.scale && !p->v.scale && !p->lengths, "bitmaps have no scale, and no lengths");
        for (const hsb_bitmaps *bitmaps : {&p->k_bitmap, &p->v_bitmap})
            HSB_CHECK(bitmaps->bitmap && bitmaps->offset && bitmaps->values, "bitmap, offset and values are required");
        decode(*p, [&](auto tag, const DecodeUnit &unit) { attend_bitmaps<typename decltype(tag)::type>(*p, unit); });
    });
}
