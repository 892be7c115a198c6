// Online softmax takes scores relative to a reference that is near their maximum so far. An exact running maximum would
// be found, and everything summed so far rescaled, for nearly every page; a lazy one hardly ever rises:
//
//   decode          the reference is a maximum, and rises once a score exceeds it by the margin
//   prefill, both   the reference is the margin above a maximum, and rises once a score exceeds it by 1
//
// In powers of 2. A larger margin rises less often and leaves less room in 16 bits: probabilities reach 2^margin in
// decode, and in prefill weights below 2^-(25 - margin) of the largest count as 0 in fp16. Of bf16 all probabilities are
// lower still, by a reserve (reserve.cuh).
#pragma once

namespace hsb::cuda {

constexpr float kDecodeMargin = 6.0f;
constexpr float kPrefillSm80Margin = 5.0f;
constexpr float kPrefillSm90Margin = 4.0f;

// What is so many powers of 2 below a new reference counts as nothing.
constexpr float kForgotten = 60.0f;

}  // namespace hsb::cuda
