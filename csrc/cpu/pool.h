// A small thread pool: workers sleep between calls, so that another library's threads are never disturbed.
//
// Why not OpenMP: torch brings its own OpenMP runtime, whose threads spin for a while after each region; a second
// runtime's would spin too, each in the other's timed samples. These workers wait on a condition variable, use no
// CPU while idle, and end with the process.
#pragma once

#include <cstdint>
#include <functional>

namespace hsb::cpu {

// Calls body(item, thread) for each item in [0, items), handed out in ascending order, on `threads` threads
// (thread 0 is the caller). Returns when all are done; the first exception is rethrown. Not reentrant: calls from
// several threads take turns.
void parallel_for(int threads, std::int64_t items, const std::function<void(std::int64_t item, int thread)> &body);

}  // namespace hsb::cpu
