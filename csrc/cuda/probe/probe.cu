#include "aligned.h"
#include "api.h"
#include "cuda/launch.h"
#include "ring.cuh"

namespace hsb::cuda {
namespace {

void read_by_ring(const hsb_probe_params &p, const Device &device) {
    const std::int64_t pieces = (p.bytes + kProbeStageBytes - 1) / kProbeStageBytes;
    const std::int64_t parts = pieces < device.multiprocessors ? pieces : device.multiprocessors;
    const std::int64_t longest = (pieces + parts - 1) / parts;
    const decode::RingShape shape =
        decode::choose_ring(kProbeHalfBytes, kProbeHalfBytes, device.shared_bytes, decode::kMaxWarps,
                            longest < decode::kMaxWarps ? static_cast<int>(longest) : decode::kMaxWarps, 1);
    launch(probe_ring_kernel, static_cast<unsigned>(parts), shape.warps * 32, shape.shared_bytes(), p.stream,
           static_cast<const unsigned char *>(p.src), p.bytes, shape,
           reinterpret_cast<unsigned long long *>(p.checksum));
}

void probe(const hsb_probe_params &p) {
    HSB_CHECK(p.src && p.checksum, "src and checksum are required");
    HSB_CHECK(p.bytes > 0 && p.bytes % 4096 == 0, "bytes must be a positive multiple of 4096");
    for (const void *buffer : {p.src, static_cast<const void *>(p.dst)})
        HSB_CHECK(is_aligned(buffer, 16), "buffers must be 16-byte aligned");
    HSB_CHECK(p.way >= HSB_PROBE_AUTO && p.way <= HSB_PROBE_RING, "way is not an hsb_probe_way");
    HSB_CHECK(p.way != HSB_PROBE_RING || !p.dst, "the ring only reads");
    const Device device = current_device();
    if (p.way == HSB_PROBE_RING) return read_by_ring(p, device);
    const std::int64_t chunks = p.bytes / 16;
    const std::int64_t runs = (chunks + kProbeThreads * kProbeLoads - 1) / (kProbeThreads * kProbeLoads);
    const std::int64_t resident = device.multiprocessors * kProbePerMultiprocessor;
    const int blocks = static_cast<int>(runs < resident ? runs : resident);
    const auto stream = static_cast<cudaStream_t>(p.stream);
    const auto *src = static_cast<const uint4 *>(p.src);
    auto *dst = static_cast<uint4 *>(p.dst);
    auto *checksum = reinterpret_cast<unsigned long long *>(p.checksum);
    if (dst)
        probe_kernel<true><<<blocks, kProbeThreads, 0, stream>>>(src, dst, chunks, checksum);
    else
        probe_kernel<false><<<blocks, kProbeThreads, 0, stream>>>(src, nullptr, chunks, checksum);
    HSB_CUDA(cudaGetLastError());
}

}  // namespace
}  // namespace hsb::cuda

// checksum is xored with what was read: the caller needs no particular value there.
extern "C" int hsb_cuda_probe(const hsb_probe_params *p) {
    return hsb::guarded([&] { hsb::cuda::probe(*p); });
}
