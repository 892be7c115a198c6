// Functions that host and device code share, in headers that a C++ compiler reads too.
#pragma once

#if defined(__CUDACC__)
#define HSB_HOST_DEVICE __host__ __device__
#else
#define HSB_HOST_DEVICE
#endif
