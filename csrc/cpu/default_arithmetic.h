// The mode of floating-point arithmetic while a work item computes what must be the definition's, bit for bit.
#pragma once

#include <cfenv>

namespace hsb::cpu {

// Arithmetic as IEEE 754 has it, to nearest and with subnormals, whatever mode the caller's thread is in, which takes
// part.
class DefaultArithmetic {
public:
    DefaultArithmetic() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultArithmetic() { std::fesetenv(&before_); }
    DefaultArithmetic(const DefaultArithmetic &) = delete;
    DefaultArithmetic &operator=(const DefaultArithmetic &) = delete;

private:
    std::fenv_t before_;
};

}  // namespace hsb::cpu
