// What can be asked of a row, and rows on their way into and out of a table with all that is
// theirs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace freshrank {

// One id. Fields that the state does not have are 0.
struct Inspection {
    enum class State : std::uint32_t { absent, pending, admitted, expired, removed };
    State state = State::absent;
    std::uint32_t count = 0;      // pending: occurrences counted, or estimated: then no times
    std::uint32_t min_count = 0;  // pending: of how many
    std::uint32_t last_seen_s = 0;
    std::uint64_t expires_s = 0;  // when it may go: later than this; 0: never
    std::uint32_t born_s = 0;
    std::uint32_t frequency = 0;
    std::uint64_t version = 0;  // of the last change, or of its removal
    double weight_norm = 0;
    double state_norm = 0;
};

template <class T>
using Column = std::vector<T>;

// Columns of n rows; values are [n, width + state].
struct Rows {
    Column<std::uint64_t> keys;
    Column<float> values;
    Column<std::uint64_t> versions;
    Column<std::uint32_t> last_seen_s, born_s, frequency;
    std::uint32_t next = 0;  // where the next call goes on
};
struct RowsView {
    std::span<const std::uint64_t> keys;
    const float* values = nullptr;
    std::span<const std::uint64_t> versions;  // empty: changed now
    std::span<const std::uint32_t> last_seen_s, born_s, frequency;
    std::uint64_t table_version = 0;  // the table's becomes at least this,
    std::uint32_t clock_s = 0;        // and its clock this
};

}  // namespace freshrank
