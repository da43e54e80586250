#include "table.hpp"

#include <algorithm>

#include "pipeline.hpp"

namespace freshrank {

namespace {

TableConfig checked(const TableConfig& config) {
    validate(config);
    return config;
}

std::vector<SliceParameters> parameters_of(const TableConfig& config) {
    const std::vector<Slice> slices = config.slices();
    return {slices.begin(), slices.end()};
}

std::uint32_t add_saturating(std::uint32_t a, std::uint32_t b) {
    const std::uint32_t sum = a + b;
    return sum < a ? ~std::uint32_t{0} : sum;
}

}  // namespace

Table::Table(const TableConfig& config, std::uint64_t initial_rows)
    : config_(checked(config)),
      slices_(parameters_of(config_)),
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

Policy Table::policy() const {
    const std::shared_lock lock(mutex_);
    return {.optimizer = config_.optimizer,
            .first_order_optimizer = config_.first_order_optimizer,
            .probability = config_.probability,
            .min_count = config_.min_count,
            .ttl_s = config_.ttl_s};
}

void Table::configure(const Policy& policy) {
    const std::lock_guard lock(mutex_);
    require_same_state(config_.optimizer, policy.optimizer);
    require(config_.first_order_optimizer.has_value() == policy.first_order_optimizer.has_value(),
            "first_order_optimizer cannot be given or taken away while a table lives");
    if (config_.first_order_optimizer) {
        require_same_state(*config_.first_order_optimizer, *policy.first_order_optimizer,
                           first_order_prefix);
    }
    TableConfig changed = config_;
    changed.optimizer = policy.optimizer;
    changed.first_order_optimizer = policy.first_order_optimizer;
    changed.probability = policy.probability;
    changed.min_count = policy.min_count;
    changed.ttl_s = policy.ttl_s;
    config_ = checked(changed);
    slices_ = parameters_of(config_);
}

void Table::set_threads(unsigned n_threads) {
    require(n_threads >= 1 && n_threads <= max_threads, "threads is " + std::to_string(n_threads) +
                                                            "; it must be from 1 to " +
                                                            std::to_string(max_threads));
    const std::lock_guard lock(mutex_);
    workers_ = std::make_unique<Workers>(n_threads);
}

unsigned Table::n_threads() const {
    const std::shared_lock lock(mutex_);
    return workers_->n_shares();
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
    initialise_row(config_, slices_, id, slabs_.at(row));
    metadata_.key(row) = id;
    metadata_.version(row) = counters_.version;
    metadata_.last_seen_s(row) = now_s;
    metadata_.born_s(row) = now_s;
    // The row's own version is at least the tombstone's: a delta that needed one carries the other.
    tombstones_.erase(id);
    ++counters_.n_admitted;
    return row;
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
