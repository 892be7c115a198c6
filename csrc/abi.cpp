// What the libraries answer about themselves: stamp, struct sizes, last error, architectures.
#include "api.h"
#include "error.h"

#include <cstring>
#include <string>

namespace hsb {
namespace {
thread_local std::string last_error;
}

void set_last_error(const char *message) noexcept {
    try {
        last_error = message;
    } catch (...) {
        last_error.clear();
    }
}
}  // namespace hsb

extern "C" const char *hsb_last_error(void) { return hsb::last_error.c_str(); }

extern "C" const char *hsb_abi(void) { return HSB_ABI_DIGEST; }  // defined by CMake

#ifdef HSB_CUDA_ARCHITECTURES
extern "C" const char *hsb_cuda_architectures(void) { return HSB_CUDA_ARCHITECTURES; }  // defined by CMake
#endif

extern "C" int64_t hsb_struct_size(const char *name) {
    static constexpr struct {
        const char *name;
        int64_t bytes;
    } sizes[] = {
        {"hsb_pages", sizeof(hsb_pages)},
        {"hsb_bitmaps", sizeof(hsb_bitmaps)},
        {"hsb_decode_params", sizeof(hsb_decode_params)},
        {"hsb_prefill_params", sizeof(hsb_prefill_params)},
        {"hsb_compress_params", sizeof(hsb_compress_params)},
        {"hsb_growing", sizeof(hsb_growing)},
        {"hsb_append_params", sizeof(hsb_append_params)},
        {"hsb_mean_params", sizeof(hsb_mean_params)},
        {"hsb_token_norms_params", sizeof(hsb_token_norms_params)},
        {"hsb_compress_bitmap_params", sizeof(hsb_compress_bitmap_params)},
        {"hsb_combine_params", sizeof(hsb_combine_params)},
        {"hsb_probe_params", sizeof(hsb_probe_params)},
    };
    for (const auto &entry : sizes)
        if (std::strcmp(entry.name, name) == 0) return entry.bytes;
    return -1;
}
