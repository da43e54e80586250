// The smallest test framework that says where and why.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <source_location>
#include <string>

#include "core/errors.hpp"

namespace freshrank::testing {

inline void check(bool condition, const char* what,
                  std::source_location at = std::source_location::current()) {
    if (!condition) {
        std::fprintf(stderr, "%s:%u: %s: failed: %s\n", at.file_name(),
                     static_cast<unsigned>(at.line()), at.function_name(), what);
        std::exit(1);
    }
}

// Runs f and returns the StoreError it threw, or "" if it threw none.
template <class F>
std::string refusal(F&& f) {
    try {
        f();
    } catch (const StoreError& error) {
        return error.what();
    }
    return {};
}

}  // namespace freshrank::testing
