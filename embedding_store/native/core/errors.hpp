// Refusals (StoreError: the caller's mistake or a bad file) and always-on checks (expects: ours).
#pragma once

#include <stdexcept>
#include <string>

namespace freshrank {

class StoreError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Never compiled out: a broken invariant must stop the trainer before it is written to a snapshot.
inline void expects(bool condition, const char* message) {
    if (!condition) {
        throw std::logic_error(std::string("broken invariant: ") + message);
    }
}

inline void require(bool condition, const std::string& message) {
    if (!condition) {
        throw StoreError(message);
    }
}
// Makes no string of what is not said: fit for every row of a table.
inline void require(bool condition, const char* message) {
    if (!condition) {
        throw StoreError(message);
    }
}

}  // namespace freshrank
