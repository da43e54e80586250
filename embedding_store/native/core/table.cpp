#include "table.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "pipeline.hpp"

namespace freshrank {

namespace {

TableConfig checked(const TableConfig& config) {
    validate(config);
    return config;
}

std::uint32_t add_saturating(std::uint32_t a, std::uint32_t b) {
    const std::uint32_t sum = a + b;
    return sum < a ? ~std::uint32_t{0} : sum;
}

// The distinct rows of one batch, numbered in order of first appearance.
class DistinctRows {
  public:
    explicit DistinctRows(std::size_t n_max)
        : slots_(std::bit_ceil(std::max<std::size_t>(2 * n_max, 16)), empty),
          shift_(64 - static_cast<unsigned>(std::countr_zero(slots_.size()))) {
        rows_.reserve(n_max);
    }

    // Returns the row's number and whether it is new.
    std::pair<std::uint32_t, bool> add(std::uint32_t row) {
        std::size_t at = (row * 0x9e3779b97f4a7c15ULL) >> shift_;
        while (slots_[at] != empty) {
            if (rows_[slots_[at]] == row) {
                return {slots_[at], false};
            }
            at = (at + 1) & (slots_.size() - 1);
        }
        slots_[at] = static_cast<std::uint32_t>(rows_.size());
        rows_.push_back(row);
        return {slots_[at], true};
    }

    std::span<const std::uint32_t> rows() const { return rows_; }

  private:
    static constexpr std::uint32_t empty = ~std::uint32_t{0};
    std::vector<std::uint32_t> slots_;
    std::vector<std::uint32_t> rows_;
    unsigned shift_;
};

}  // namespace

Table::Table(const TableConfig& config, std::uint64_t initial_rows)
    : config_(checked(config)),
      parameters_(config_),
      index_(random_secret()),
      slabs_(config_.width() + config_.n_state()),
      pending_(random_secret()),
      tombstones_(random_secret()) {
    require(initial_rows < no_row, "initial_rows is " + std::to_string(initial_rows) +
                                       "; a table holds at most 2^32 - 1 rows");
    if (initial_rows > 0) {
        index_.reserve(initial_rows);
        slabs_.ensure(static_cast<std::uint32_t>(initial_rows - 1));
        metadata_.ensure(static_cast<std::uint32_t>(initial_rows - 1));
    }
}

void Table::lookup(Ids ids, float* out) const {
    const std::shared_lock lock(mutex_);
    gather(index_, slabs_, ids, config_.width(), out, nullptr);
}

void Table::lookup_or_admit(Ids ids, std::span<const std::uint32_t> counts, std::uint32_t now_s,
                            float* out) {
    const std::lock_guard lock(mutex_);
    counters_.clock_s = std::max<std::uint64_t>(counters_.clock_s, now_s);
    const std::uint64_t n_before = counters_.n_admitted;
    std::vector<std::uint32_t> rows(ids.size());
    for_each_row(
        index_, ids,
        [&](std::uint32_t row) {
            return std::array{Lines{&metadata_.last_seen_s(row), sizeof(std::uint32_t)},
                              Lines{&metadata_.frequency(row), sizeof(std::uint32_t)}};
        },
        [&](std::size_t i, std::uint32_t row) {
            if (counts[i] != 0) {
                // A group found absent may hold an id born since, earlier in this batch.
                if (row == no_row && counters_.n_admitted != n_before) {
                    row = index_.find(ids[i]);
                }
                if (row == no_row) {
                    row = admit(ids[i], counts[i], now_s);
                } else {
                    touch(row, counts[i], now_s);
                }
            }
            rows[i] = row;
        });
    const bool has_newborn = counters_.n_admitted != n_before;
    const std::uint32_t width = config_.width();
    constexpr std::size_t ahead = 24;  // rows fetched ahead of the copy
    with_width(width, [&](auto n_floats) {
        for (std::size_t i = 0; i < ids.size(); ++i) {
            if (i + ahead < ids.size() && rows[i + ahead] != no_row) {
                prefetch(slabs_.lines(rows[i + ahead], width));
            }
            // Entries before the one that brought the birth read the newborn row too.
            const std::uint32_t row =
                rows[i] == no_row && has_newborn ? index_.find(ids[i]) : rows[i];
            float* to = out + i * n_floats;
            if (row == no_row) {
                std::memset(to, 0, n_floats * sizeof(float));
            } else {
                std::memcpy(to, slabs_.at(row), n_floats * sizeof(float));
            }
        }
    });
}

void Table::touch(std::uint32_t row, std::uint32_t count, std::uint32_t now_s) {
    std::uint32_t& last_seen_s = metadata_.last_seen_s(row);
    last_seen_s = std::max(last_seen_s, now_s);
    metadata_.frequency(row) = add_saturating(metadata_.frequency(row), count);
}

// How many of `count` occurrences the dice let through, stopping at `enough`.
std::uint64_t Table::passed(std::uint64_t id, std::uint32_t count, std::uint64_t enough) {
    if (config_.probability >= 1) {
        return std::min<std::uint64_t>(count, enough);
    }
    const std::uint64_t stream = mix64(mix64(config_.seed ^ 0x61646d6974ULL) ^ id);
    std::uint64_t n_passed = 0;
    for (std::uint32_t i = 0; i < count && n_passed < enough; ++i) {
        const std::uint64_t bits = mix64(stream ^ mix64(counters_.n_draws++)) >> 11;
        n_passed += static_cast<double>(bits) < config_.probability * 0x1p53;
    }
    return n_passed;
}

// Counts occurrences of an id without a row; returns its row if they bring it to life.
std::uint32_t Table::admit(std::uint64_t id, std::uint32_t count, std::uint32_t now_s) {
    Pending* waiting = config_.min_count > 1 ? pending_.find(id) : nullptr;
    const std::uint32_t n_known = waiting == nullptr ? 0 : waiting->count;
    const std::uint64_t n_passed = passed(id, count, config_.min_count - n_known);
    if (n_known + n_passed >= config_.min_count) {
        const std::uint32_t row = give_birth(id, now_s);
        metadata_.frequency(row) = add_saturating(n_known, count);
        if (waiting != nullptr) {
            pending_.erase(id);
        }
        return row;
    }
    counters_.n_filtered += count;
    if (waiting != nullptr) {
        waiting->count += static_cast<std::uint32_t>(n_passed);
        waiting->last_seen_s = std::max(waiting->last_seen_s, now_s);
    } else if (n_passed > 0) {
        pending_.insert({id, static_cast<std::uint32_t>(n_passed), now_s});
    }
    return no_row;
}

std::uint32_t Table::give_birth(std::uint64_t id, std::uint32_t now_s) {
    index_.prepare_insert(index_.hash(id));
    const std::uint32_t row = numbers_.take();
    slabs_.ensure(row);
    metadata_.ensure(row);
    index_.insert(id, row);
    initialise_row(config_, id, slabs_.at(row));
    metadata_.key(row) = id;
    metadata_.version(row) = counters_.version;
    metadata_.last_seen_s(row) = now_s;
    metadata_.born_s(row) = now_s;
    // The row's own version is at least the tombstone's: a delta that needed one carries the other.
    tombstones_.erase(id);
    ++counters_.n_admitted;
    return row;
}

std::uint64_t Table::apply(Ids ids, const float* gradients) {
    const std::lock_guard lock(mutex_);
    const std::uint32_t width = config_.width();
    const std::uint32_t n_floats = width + config_.n_state();
    constexpr std::uint32_t no_sum = ~std::uint32_t{0};
    DistinctRows distinct(ids.size());
    std::vector<const float*> sums;     // by distinct row: its only gradient, or null
    std::vector<std::uint32_t> sum_of;  // by distinct row: where its sum is, or no_sum
    std::vector<float> buffer;          // sums of rows that appear more than once
    sums.reserve(ids.size());
    sum_of.reserve(ids.size());
    for_each_row(
        index_, ids, [&](std::uint32_t row) { return std::array{slabs_.lines(row, n_floats)}; },
        [&](std::size_t i, std::uint32_t row) {
            if (row == no_row) {
                return;
            }
            const float* gradient = gradients + i * width;
            const auto [n, is_new] = distinct.add(row);
            if (is_new) {
                sums.push_back(gradient);
                sum_of.push_back(no_sum);
                return;
            }
            if (sum_of[n] == no_sum) {
                sum_of[n] = static_cast<std::uint32_t>(buffer.size() / width);
                buffer.insert(buffer.end(), sums[n], sums[n] + width);
            }
            float* sum = buffer.data() + std::size_t{sum_of[n]} * width;
            for (std::uint32_t column = 0; column < width; ++column) {
                sum[column] += gradient[column];
            }
        });
    const auto rows = distinct.rows();
    for (std::size_t n = 0; n < rows.size(); ++n) {
        if (sum_of[n] != no_sum) {
            sums[n] = buffer.data() + std::size_t{sum_of[n]} * width;
        }
    }
    switch (config_.optimizer) {
        case Optimizer::sgd:
            step_all<Optimizer::sgd>(rows, sums);
            break;
        case Optimizer::adagrad:
            step_all<Optimizer::adagrad>(rows, sums);
            break;
        case Optimizer::rowwise_adagrad:
            step_all<Optimizer::rowwise_adagrad>(rows, sums);
            break;
        case Optimizer::adam:
            step_all<Optimizer::adam>(rows, sums);
            break;
    }
    return rows.size();
}

template <Optimizer kind>
void Table::step_all(std::span<const std::uint32_t> rows, std::span<const float* const> gradients) {
    const std::uint32_t n_floats = config_.width() + config_.n_state();
    constexpr std::size_t ahead = 16;  // a large batch has pushed its first rows out of the cache
    for (std::size_t n = 0; n < rows.size(); ++n) {
        if (n + ahead < rows.size()) {
            prefetch(slabs_.lines(rows[n + ahead], n_floats));
            prefetch({&metadata_.version(rows[n + ahead]), sizeof(std::uint64_t)});
        }
        step<kind>(parameters_, slabs_.at(rows[n]), gradients[n]);
        metadata_.version(rows[n]) = counters_.version;
    }
}

void Table::contains(Ids ids, std::uint8_t* out) const {
    const std::shared_lock lock(mutex_);
    for_each_row(index_, ids, fetch_nothing,
                 [&](std::size_t i, std::uint32_t row) { out[i] = row != no_row; });
}

void Table::pending(Ids ids, std::uint32_t* out) const {
    const std::shared_lock lock(mutex_);
    for (std::size_t i = 0; i < ids.size(); ++i) {
        const Pending* waiting = pending_.find(ids[i]);
        out[i] = waiting == nullptr ? 0 : waiting->count;
    }
}

void Table::born_s(Ids ids, std::uint32_t* out) const {
    const std::shared_lock lock(mutex_);
    for_each_row(index_, ids, fetch_nothing, [&](std::size_t i, std::uint32_t row) {
        out[i] = row == no_row ? 0 : metadata_.born_s(row);
    });
}

void Table::last_seen_s(Ids ids, std::uint32_t* out) const {
    const std::shared_lock lock(mutex_);
    for_each_row(index_, ids, fetch_nothing, [&](std::size_t i, std::uint32_t row) {
        out[i] = row == no_row ? 0 : metadata_.last_seen_s(row);
    });
}

bool Table::is_stale(std::uint32_t last_seen_s) const {
    return std::uint64_t{last_seen_s} + config_.ttl_s < counters_.clock_s;
}

std::uint64_t Table::expire(std::uint32_t now_s, std::uint64_t max_rows) {
    const std::lock_guard lock(mutex_);
    counters_.clock_s = std::max<std::uint64_t>(counters_.clock_s, now_s);
    if (config_.ttl_s == 0) {
        return 0;
    }
    // At most once around, so that one call never visits a row twice.
    const auto slice = [&](std::uint32_t high_water, std::uint32_t& cursor, auto&& visit) {
        const std::uint64_t n = std::min<std::uint64_t>(max_rows, high_water);
        for (std::uint64_t i = 0; i < n; ++i) {
            visit(cursor);
            cursor = cursor + 1 >= high_water ? 0 : cursor + 1;
        }
    };
    std::uint64_t n_removed = 0;
    slice(numbers_.high_water(), counters_.row_cursor, [&](std::uint32_t row) {
        if (metadata_.version(row) != 0 && is_stale(metadata_.last_seen_s(row))) {
            remove_row(metadata_.key(row));
            ++n_removed;
        }
    });
    slice(pending_.numbers().high_water(), counters_.pending_cursor, [&](std::uint32_t n) {
        const Pending& waiting = pending_.at(n);
        if (!waiting.is_free() && is_stale(waiting.last_seen_s)) {
            pending_.erase(waiting.key);
        }
    });
    counters_.n_expired += n_removed;
    return n_removed;
}

// Zeroes what it frees: the next tenant inherits nothing, and a forgotten person leaves nothing.
void Table::remove_row(std::uint64_t id) {
    tombstones_.insert({id, counters_.version});  // first: it alone may fail for want of memory
    const std::uint32_t row = index_.erase(id);
    expects(row != no_row, "a row to remove is not in the index");
    std::memset(slabs_.at(row), 0, std::size_t{slabs_.stride()} * sizeof(float));
    metadata_.key(row) = 0;
    metadata_.version(row) = 0;
    metadata_.last_seen_s(row) = 0;
    metadata_.born_s(row) = 0;
    metadata_.frequency(row) = 0;
    numbers_.give_back(row);
}

std::uint64_t Table::erase(Ids ids) {
    const std::lock_guard lock(mutex_);
    std::uint64_t n_removed = 0;
    for (const std::uint64_t id : ids) {
        pending_.erase(id);
        if (index_.find(id) != no_row) {
            remove_row(id);
            ++n_removed;
        }
    }
    counters_.n_erased += n_removed;
    return n_removed;
}

std::uint64_t Table::version() const {
    const std::shared_lock lock(mutex_);
    return counters_.version;
}

std::uint64_t Table::advance() {
    const std::lock_guard lock(mutex_);
    return counters_.version++;
}

Delta Table::delta(std::uint64_t since) const {
    const std::shared_lock lock(mutex_);
    std::vector<std::pair<std::uint64_t, std::uint32_t>> changed;
    for (std::uint32_t row = 0; row < numbers_.high_water(); ++row) {
        if (metadata_.version(row) > since) {
            changed.emplace_back(metadata_.key(row), row);
        }
    }
    std::sort(changed.begin(), changed.end());
    Delta delta;
    const std::uint32_t width = config_.width();
    delta.keys.reserve(changed.size());
    delta.rows.resize(changed.size() * width);
    float* to = delta.rows.data();
    for (const auto& [key, row] : changed) {
        delta.keys.push_back(key);
        std::memcpy(to, slabs_.at(row), width * sizeof(float));
        to += width;
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

std::vector<std::uint64_t> Table::keys() const {
    const std::shared_lock lock(mutex_);
    std::vector<std::uint64_t> keys;
    keys.reserve(numbers_.n_live());
    for (std::uint32_t row = 0; row < numbers_.high_water(); ++row) {
        if (metadata_.version(row) != 0) {
            keys.push_back(metadata_.key(row));
        }
    }
    std::sort(keys.begin(), keys.end());
    return keys;
}

Statistics Table::statistics() const {
    const std::shared_lock lock(mutex_);
    return {
        .rows = numbers_.n_live(),
        .capacity = slabs_.capacity(),
        .pending = pending_.size(),
        .admitted = counters_.n_admitted,
        .filtered = counters_.n_filtered,
        .expired = counters_.n_expired,
        .erased = counters_.n_erased,
        .tombstones = tombstones_.size(),
        .bytes = index_.n_bytes() + slabs_.n_bytes() + metadata_.n_bytes() + pending_.n_bytes() +
                 tombstones_.n_bytes() + numbers_.free().capacity() * 4,
        .clock_s = counters_.clock_s,
    };
}

std::uint64_t Table::size() const {
    const std::shared_lock lock(mutex_);
    return numbers_.n_live();
}

}  // namespace freshrank
