// Host-side errors: thrown inside as hsb::Error, caught at the C ABI, and handed to Python as hsb_last_error().
#pragma once

#include <stdexcept>
#include <string>

namespace hsb {

class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail(const char *file, int line, const char *condition, const std::string &message) {
    throw Error(std::string(file) + ":" + std::to_string(line) + ": " + condition + ": " + message);
}

void set_last_error(const char *message) noexcept;

// Runs an operation and turns what it throws into a return code.
template <class Operation>
int guarded(Operation &&operation) noexcept {
    try {
        operation();
        return 0;
    } catch (const std::exception &error) {
        set_last_error(error.what());
    } catch (...) {
        set_last_error("unknown C++ exception");
    }
    return 1;
}

}  // namespace hsb

// A macro, for the text of the condition and the place of the call.
#define HSB_CHECK(condition, message)                                           \
    do {                                                                        \
        if (!(condition)) ::hsb::fail(__FILE__, __LINE__, #condition, message); \
    } while (0)
