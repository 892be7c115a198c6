// Reads a buffer once as decode reads its pages, without decode's arithmetic: one CTA a multiprocessor, a contiguous
// range each, every warp with a ring of stages of its own that it refills itself (decode/plan.h).
#pragma once

#include "cuda/decode/plan.h"
#include "cuda/ptx/shared.cuh"
#include "probe.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#include "cuda/decode/sm90/ring.cuh"
#else
#include "cuda/decode/sm80/ring.cuh"
#endif

namespace hsb::cuda {

// A stage is two halves, where decode has a K page and a V page: about as large as 2:4 pages.
constexpr int kProbeHalfBytes = 8192;
constexpr int kProbeStageBytes = 2 * kProbeHalfBytes;

// `bytes`: a multiple of 4096. A stage's bytes, and each half of them, may end early: the buffer's last.
__global__ void __launch_bounds__(decode::kMaxWarps * 32, 1)
    probe_ring_kernel(const unsigned char *__restrict__ src, std::int64_t bytes,
                      const __grid_constant__ decode::RingShape shape, unsigned long long *__restrict__ checksum) {
    extern __shared__ __align__(decode::kStageAlign) unsigned char shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = shape.warps;
    unsigned char *const own = shared + warp * shape.stages * kProbeStageBytes;
    decode::Ring ring(shape, ptx::shared_address(own),
                      ptx::shared_address(shared + shape.ring_bytes() + warp * shape.stages * decode::kBarrierBytes),
                      lane);
    ring.open();

    const std::int64_t pieces = (bytes + kProbeStageBytes - 1) / kProbeStageBytes;
    const std::int64_t end = pieces * (blockIdx.x + 1) / gridDim.x;
    std::int64_t piece = pieces * blockIdx.x / gridDim.x + warp, next = piece;
    const auto half_bytes = [&](std::int64_t of, int half) {
        const std::int64_t left = of < end ? bytes - of * kProbeStageBytes - half * kProbeHalfBytes : 0;
        return static_cast<int>(left < 0 ? 0 : left < kProbeHalfBytes ? left : kProbeHalfBytes);
    };
    const auto refill_first = [&](int stage) {
        ring.load_key(stage, src + next * kProbeStageBytes, half_bytes(next, 0));
    };
    const auto refill_second = [&](int stage) {
        ring.load_value(stage, src + next * kProbeStageBytes + kProbeHalfBytes, half_bytes(next, 1));
        next += warps;
    };
    uint4 all = {0, 0, 0, 0};
    const auto read = [&](int stage, int half) {
        const auto *from = reinterpret_cast<const uint4 *>(own + stage * kProbeStageBytes + half * kProbeHalfBytes);
        for (int step = 0; step < half_bytes(piece, half) / 4096; ++step)
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const uint4 x = from[(step * 8 + i) * 32 + lane];
                all.x ^= x.x, all.y ^= x.y, all.z ^= x.z, all.w ^= x.w;
            }
    };

    for (int stage = 0; stage < shape.stages; ++stage) {
        refill_first(stage);
        refill_second(stage);
    }
    int stage = 0;
    std::uint32_t phase = 0;
    for (; piece < end; piece += warps) {
        ring.wait_key(stage, phase);
        read(stage, 0);
        refill_first(stage);
        if (half_bytes(piece, 1) > 0) {
            ring.wait_value(stage, phase);
            read(stage, 1);
        }
        refill_second(stage);
        if (++stage == shape.stages) {
            stage = 0;
            phase ^= 1;
        }
    }
    hand_in(all, checksum);
}

}  // namespace hsb::cuda
