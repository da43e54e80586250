// Questions about one id, and rows read and written with their state and metadata.
#include "inspection.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <mutex>
#include <numeric>
#include <shared_mutex>
#include <string>

#include "table.hpp"

namespace freshrank {

namespace {

// Keys without a row, each once.
std::uint64_t n_absent(const Index& index, Ids keys) {
    std::vector<std::uint64_t> absent;
    std::copy_if(keys.begin(), keys.end(), std::back_inserter(absent),
                 [&](std::uint64_t key) { return index.find(key) == no_row; });
    std::sort(absent.begin(), absent.end());
    return static_cast<std::uint64_t>(std::unique(absent.begin(), absent.end()) - absent.begin());
}

double sum_of_squares(const float* values, std::size_t n) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
        sum += double{values[i]} * double{values[i]};
    }
    return sum;
}

// Without the integer in a float's place that may end a slice's state.
double state_norm(const TableConfig& config, const float* state) {
    double sum = 0;
    for (const Slice& slice : config.slices()) {
        const OptimizerConfig& own = slice.optimizer;
        const bool has_integer = own.kind == OptimizerKind::adam ||
                                 own.n_state(1) > OptimizerConfig{.kind = own.kind}.n_state(1);
        const std::uint32_t n = own.n_state(slice.n_columns) - (has_integer ? 1U : 0U);
        sum += sum_of_squares(state + slice.state, n);
    }
    return std::sqrt(sum);
}

}  // namespace

Inspection Table::inspect(std::uint64_t id) const {
    const std::shared_lock lock(mutex_);
    Inspection found;
    const auto seen = [&](Inspection::State state, std::uint32_t last_seen_s) {
        const bool is_out_of_time = config_.ttl_s != 0 && is_stale(last_seen_s);
        found.state = is_out_of_time ? Inspection::State::expired : state;
        found.last_seen_s = last_seen_s;
        found.expires_s = config_.ttl_s == 0 ? 0 : std::uint64_t{last_seen_s} + config_.ttl_s;
    };
    if (const std::uint32_t row = index_.find(id); row != no_row) {
        seen(Inspection::State::admitted, metadata_.last_seen_s(row));
        found.born_s = metadata_.born_s(row);
        found.frequency = metadata_.frequency(row);
        found.version = metadata_.version(row);
        found.weight_norm = std::sqrt(sum_of_squares(slabs_.at(row), config_.width()));
        found.state_norm = state_norm(config_, state(row));
    } else if (const auto known = pending_.find(id, static_cast<std::uint32_t>(counters_.clock_s));
               known.count > 0) {
        found.state = Inspection::State::pending;
        if (!known.is_estimate) {
            seen(Inspection::State::pending, known.seen_s);
        }
        found.count = known.count;
        found.min_count = threshold();
    } else if (const Tombstone* tombstone = tombstones_.find(id); tombstone != nullptr) {
        found.state = Inspection::State::removed;
        found.version = tombstone->version;
    }
    return found;
}

Rows Table::rows_from(std::uint32_t start, std::uint64_t max_rows) const {
    const std::shared_lock lock(mutex_);
    const std::uint32_t n_floats = config_.width() + n_state_;
    Rows rows;
    rows.next = start;
    for (; rows.next < numbers_.high_water() && rows.keys.size() < max_rows; ++rows.next) {
        const std::uint32_t row = rows.next;
        if (metadata_.version(row) == 0) {
            continue;
        }
        rows.keys.push_back(metadata_.key(row));
        rows.values.resize(rows.values.size() + n_floats);
        get_floats(row, rows.values.data() + rows.values.size() - n_floats);
        rows.versions.push_back(metadata_.version(row));
        rows.last_seen_s.push_back(metadata_.last_seen_s(row));
        rows.born_s.push_back(metadata_.born_s(row));
        rows.frequency.push_back(metadata_.frequency(row));
    }
    return rows;
}

void Table::put_rows(const RowsView& rows) {
    const std::lock_guard lock(mutex_);
    room_.try_again();
    require(rows.table_version <= max_version,
            "table_version is " + std::to_string(rows.table_version) + "; it must be at most " +
                std::to_string(max_version));
    const std::uint64_t version = std::max(counters_.version, rows.table_version);
    for (const std::uint64_t own : rows.versions) {
        require(own > 0 && own <= version, "a row's version is " + std::to_string(own) +
                                               "; it must be from 1 to the table's, " +
                                               std::to_string(version));
    }
    const std::uint32_t now_s =
        std::accumulate(rows.last_seen_s.begin(), rows.last_seen_s.end(), rows.clock_s,
                        [](auto a, auto b) { return std::max(a, b); });
    const std::uint32_t n_floats = config_.width() + n_state_;
    for (std::size_t i = 0; i < rows.keys.size(); ++i) {
        const std::uint32_t own_s = aged_s(slices_, rows.values + i * n_floats + config_.width());
        require(own_s <= std::max<std::uint64_t>(counters_.clock_s, now_s),
                "the accumulators of id " + std::to_string(rows.keys[i]) + " were aged at " +
                    std::to_string(own_s) + " s, ahead of the clock; give clock_s as it stood in " +
                    "the table that the rows are from");
    }
    const std::uint64_t n_new = n_absent(index_, rows.keys);
    while (room_.rows() - numbers_.n_live() < n_new && extend_room()) {
    }
    require(n_new <= room_.rows() - numbers_.n_live(),
            "there is no room for " + std::to_string(n_new) + " new rows: the budget holds " +
                std::to_string(room_.rows()) + ", and " + std::to_string(numbers_.n_live()) +
                " are taken; nothing was changed; give the table more bytes");
    counters_.version = version;
    move_clock(now_s);
    for (std::size_t i = 0; i < rows.keys.size(); ++i) {
        // A version of its own only where nobody can have missed it: not the reader of an earlier
        // state, which would never be told.
        std::uint64_t row_version = counters_.version;
        std::uint32_t row = index_.find(rows.keys[i]);
        if (row == no_row) {
            if (!rows.versions.empty() && !has_ended_version_ &&
                tombstones_.find(rows.keys[i]) == nullptr) {
                row_version = rows.versions[i];
            }
            row = give_birth(rows.keys[i], rows.last_seen_s[i]);
            require(row != no_row, "the index has no room for id " + std::to_string(rows.keys[i]));
            pending_.erase(rows.keys[i]);
        }
        keep_rows({&row, 1});
        set_floats(row, rows.values + i * n_floats);
        metadata_.set_version(row, row_version);
        metadata_.last_seen_s(row) = rows.last_seen_s[i];
        metadata_.born_s(row) = rows.born_s[i];
        metadata_.frequency(row) = rows.frequency[i];
    }
}

}  // namespace freshrank
