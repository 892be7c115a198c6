// The first NaN or infinity of a tensor, whichever thread meets one first. For launchers.
#pragma once

#include <atomic>
#include <cstdint>

#include "compress.h"

namespace hsb::cpu {

class FirstNonFinite {
public:
    explicit FirstNonFinite(int dtype) : infinity_(infinity_bits(dtype)) {}

    // Looks at x[begin], x[begin + 1], ...; called only for runs that hold one.
    void scan(const std::uint16_t *x, std::int64_t begin, std::int64_t elements) {
        for (std::int64_t i = begin; i < begin + elements; ++i) {
            if ((x[i] & 0x7fff) < infinity_) continue;
            std::int64_t known = first_.load();
            while (i < known && !first_.compare_exchange_weak(known, i)) {
            }
            return;
        }
    }
    std::int64_t index() const { return first_ == kNone ? -1 : first_.load(); }

private:
    static constexpr std::int64_t kNone = INT64_MAX;
    const std::uint16_t infinity_;
    std::atomic<std::int64_t> first_{kNone};
};

}  // namespace hsb::cpu
