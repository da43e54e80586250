// What leaves a table and what changed in it: expiry, erasure, deltas, tombstones.
#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "table.hpp"

namespace freshrank {

namespace {

using Changed = std::pair<std::uint64_t, std::uint32_t>;  // key and row

constexpr std::size_t rows_ahead = 24;  // fetched before their turn

// By key. Keys are mostly spread over their range: dealt out by it, a few hundred of them are left
// to sort at a time, in the cache.
void sort_by_key(std::vector<Changed>& changed) {
    constexpr std::size_t worth_it = 1 << 16, keys_per_part = 256;
    if (changed.size() < worth_it) {
        std::sort(changed.begin(), changed.end());
        return;
    }
    const auto [low, high] = std::minmax_element(changed.begin(), changed.end());
    const std::uint64_t first = low->first, range = high->first - first;
    const auto n_bits = static_cast<int>(std::bit_width(changed.size() / keys_per_part));
    const int shift = std::max(static_cast<int>(std::bit_width(range)) - n_bits, 0);
    const auto part_of = [&](const Changed& one) {
        return static_cast<std::size_t>((one.first - first) >> shift);
    };
    std::vector<std::size_t> ends((std::size_t{1} << n_bits) + 1);
    for (const Changed& one : changed) {
        ++ends[part_of(one) + 1];
    }
    for (std::size_t part = 1; part < ends.size(); ++part) {
        ends[part] += ends[part - 1];
    }
    // What is a part's start before becomes its end.
    std::vector<Changed> dealt(changed.size());
    for (const Changed& one : changed) {
        dealt[ends[part_of(one)]++] = one;
    }
    std::size_t start = 0;
    for (const std::size_t end : ends) {
        std::sort(dealt.begin() + static_cast<std::ptrdiff_t>(start),
                  dealt.begin() + static_cast<std::ptrdiff_t>(end));
        start = end;
    }
    changed = std::move(dealt);
}

}  // namespace

bool Table::is_stale(std::uint32_t last_seen_s) const {
    return std::uint64_t{last_seen_s} + config_.ttl_s < counters_.clock_s;
}

std::uint64_t Table::expire(std::uint32_t now_s, std::uint64_t max_rows) {
    const std::lock_guard lock(mutex_);
    move_clock(now_s);
    if (config_.ttl_s == 0) {
        return 0;
    }
    const std::uint32_t high_water = numbers_.high_water();
    std::uint32_t& row = counters_.row_cursor;
    const std::uint64_t n_before = counters_.n_expired;
    // At most once around, so that one call never visits a row twice.
    std::uint64_t n_left = std::min<std::uint64_t>(max_rows, high_water);
    while (n_left > 0) {
        const std::uint64_t end = std::min<std::uint64_t>(row + n_left, high_water);
        const auto records = metadata_.run(row, static_cast<std::uint32_t>(end));
        for (const Metadata::Record& record : records) {
            if (is_stale(record.last_seen_s) && record.version() != 0 &&
                numbers_.n_live() > config_.limits.min_rows &&
                tombstones_.size() < room_.tombstones()) {
                remove_row(metadata_.key(row));
                ++counters_.n_expired;
            }
            ++row;
        }
        n_left -= records.size();
        row = row >= high_water ? 0 : row;
    }
    pending_.sweep(max_rows);
    return counters_.n_expired - n_before;
}

// Zeroes what it frees: the next tenant inherits nothing, and a forgotten person leaves nothing.
void Table::remove_row(std::uint64_t id) {
    keep({&id, 1});
    // First what may fail: if memory runs out here, nothing changed.
    numbers_.prepare_give_back();
    tombstones_.insert({id, counters_.version});
    looked_up_.ids.clear();
    const std::uint32_t row = index_.erase(id);
    expects(row != no_row, "a row to remove is not in the index");
    wipe(row);
    numbers_.give_back(row);
}

void Table::wipe(std::uint32_t row) {
    std::memset(slabs_.at(row), 0, std::size_t{slabs_.stride()} * sizeof(float));
    metadata_.clear(row);
}

std::uint64_t Table::erase(Ids ids) {
    const std::lock_guard lock(mutex_);
    require(tombstones_.size() + ids.size() <= room_.tombstones(),
            "max_bytes has room for " + std::to_string(room_.tombstones()) + " tombstones, " +
                std::to_string(tombstones_.size()) + " are kept: erasing " +
                std::to_string(ids.size()) + " ids needs more; publish and trim_tombstones first");
    std::uint64_t n_removed = 0;
    for (const std::uint64_t id : ids) {
        pending_.erase(id);
        if (index_.find(id) != no_row) {
            remove_row(id);
            ++counters_.n_erased;
            ++n_removed;
        }
    }
    return n_removed;
}

std::uint64_t Table::version() const {
    const std::shared_lock lock(mutex_);
    return counters_.version;
}

std::uint64_t Table::advance() {
    const std::lock_guard lock(mutex_);
    require(counters_.version < max_version,
            "the table's version is " + std::to_string(max_version) +
                ", the last there is; write its rows to a new table: rows_from, put_rows");
    has_ended_version_ = true;
    return counters_.version++;
}

Delta Table::delta(std::uint64_t since) const {
    const std::shared_lock lock(mutex_);
    require(since <= counters_.version,
            "since is " + std::to_string(since) + ", and the table is at version " +
                std::to_string(counters_.version) +
                ": a reader that is ahead of a table read another one, or "
                "a later state of this one; fill it anew with delta(0)");
    std::vector<Changed> changed;
    if (since == 0) {
        changed.reserve(numbers_.n_live());
    }
    for (std::uint32_t row = 0; row < numbers_.high_water();) {
        for (const Metadata::Record& record : metadata_.run(row, numbers_.high_water())) {
            if (record.version() > since) {
                changed.emplace_back(metadata_.key(row), row);
            }
            ++row;
        }
    }
    sort_by_key(changed);
    Delta delta;
    const std::uint32_t width = config_.width();
    delta.keys.reserve(changed.size());
    delta.rows.reserve(changed.size() * width);
    for (std::size_t i = 0; i < changed.size(); ++i) {
        if (i + rows_ahead < changed.size()) {
            prefetch(slabs_.lines(changed[i + rows_ahead].second, width));
        }
        const auto& [key, row] = changed[i];
        delta.keys.push_back(key);
        const float* from = slabs_.at(row);
        delta.rows.insert(delta.rows.end(), from, from + width);
    }
    for (std::uint32_t n = 0; n < tombstones_.numbers().high_water(); ++n) {
        if (tombstones_.at(n).version > since) {
            delta.tombstones.push_back(tombstones_.at(n).key);
        }
    }
    std::sort(delta.tombstones.begin(), delta.tombstones.end());
    return delta;
}

std::uint64_t Table::trim_tombstones(std::uint64_t through) {
    const std::lock_guard lock(mutex_);
    std::uint64_t n_removed = 0;
    for (std::uint32_t n = 0; n < tombstones_.numbers().high_water(); ++n) {
        const Tombstone& tombstone = tombstones_.at(n);
        if (!tombstone.is_free() && tombstone.version <= through) {
            n_removed += tombstones_.erase(tombstone.key);
        }
    }
    return n_removed;
}

}  // namespace freshrank
