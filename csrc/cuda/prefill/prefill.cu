#include "prefill.h"

#include <cmath>
#include <cstring>

#include "api.h"
#include "cuda/page_pool.cuh"

namespace hsb::cuda::prefill {
namespace {

void check(const hsb_prefill_params &p) {
    check_paged_shape(p);
    HSB_CHECK(p.q_len > 0 && p.q_len <= p.seq, "q_len must be 1 to seq");
    HSB_CHECK(p.seq < (1 << 30), "seq must be below 2^30");
    HSB_CHECK(p.path == HSB_PATH_AUTO || p.path == HSB_PATH_SM80 || p.path == HSB_PATH_SM90, "path is not an hsb_path");
}

// Only sm_90a's own machine code has wgmma.sp; in anything else, the PTX for newer chips among it, the kernel is a trap.
// CMake's name for it contains "90a".
bool can_take_sm90(const Device &device) {
    return device.capability == 90 && std::strstr(hsb_cuda_architectures(), "90a") != nullptr;
}

hsb_path choose_path(const hsb_prefill_params &p, const Device &device) {
    const bool can = can_take_sm90(device);
    HSB_CHECK(p.path != HSB_PATH_SM90 || can,
              "path sm90 needs a GPU of compute capability 9.0 and code for 90a in the library: take sm80, or auto");
    return p.path == HSB_PATH_SM80 || !can ? HSB_PATH_SM80 : HSB_PATH_SM90;
}

void run(const hsb_prefill_params &p) {
    check(p);
    check_pages(p.k, p.head_dim);
    check_pages(p.v, p.head_dim);
    HSB_CHECK(p.q && p.out && p.lse, "q, out and lse are required");
    for (const void *tensor : {p.q, static_cast<const void *>(p.out)})
        HSB_CHECK(reinterpret_cast<std::uintptr_t>(tensor) % 16 == 0, "q and out must be 16-byte aligned");
    HSB_CHECK(std::isfinite(p.scale), "scale must be finite");
    check_order_and_shifts(p);
    const Device device = current_device();
    if (choose_path(p, device) == HSB_PATH_SM90)
        run_prefill_sm90(p, device);
    else
        run_prefill_sm80(p, device);
}

}  // namespace
}  // namespace hsb::cuda::prefill

// No path keeps anything between its CTAs.
extern "C" int64_t hsb_cuda_prefill_workspace(const hsb_prefill_params *p) {
    return hsb::guarded([&] { hsb::cuda::prefill::check(*p); }) ? -1 : 0;
}

extern "C" int hsb_cuda_prefill(const hsb_prefill_params *p) {
    return hsb::guarded([&] { hsb::cuda::prefill::run(*p); });
}
