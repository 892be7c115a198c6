// Host side of a launch: CUDA errors as exceptions, and what a launcher asks of the current device.
#pragma once

#include <cuda_runtime_api.h>

#include "error.h"

// A macro, for the text of the call and its place.
#define HSB_CUDA(call)                                                                                         \
    do {                                                                                                       \
        const cudaError_t hsb_status = (call);                                                                 \
        if (hsb_status != cudaSuccess) ::hsb::fail(__FILE__, __LINE__, #call, cudaGetErrorString(hsb_status)); \
    } while (0)

namespace hsb::cuda {

struct Device {
    int multiprocessors;
    int shared_bytes;  // that one block may have, opted in
    int capability;    // 10 * major + minor
};

// Attributes are host-side look-ups: no synchronisation, and allowed while a stream is being captured.
inline Device current_device() {
    int device = 0, major = 0, minor = 0;
    Device found{};
    HSB_CUDA(cudaGetDevice(&device));
    HSB_CUDA(cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device));
    HSB_CUDA(cudaDeviceGetAttribute(&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    HSB_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    HSB_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    found.capability = 10 * major + minor;
    HSB_CHECK(found.capability >= 80, "needs an NVIDIA GPU of compute capability 8.0 or newer");
    return found;
}

}  // namespace hsb::cuda
