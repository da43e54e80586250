#include "table.hpp"

#include <algorithm>
#include <utility>

#include "pipeline.hpp"
#include "snapshot.hpp"

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

}  // namespace

Table::Table(const TableConfig& config, std::uint64_t initial_rows, std::shared_ptr<Budget> budget)
    : config_(checked(config)),
      slices_(parameters_of(config_)),
      n_state_(config_.n_state()),
      index_(random_secret(), &tally_),
      numbers_(&tally_),
      slabs_(config_.width() + config_.n_state_behind(), &tally_),
      metadata_(&tally_),
      pending_(empty_pending()),
      tombstones_(random_secret(), &tally_),
      room_(config_.limits, slabs_, std::move(budget)) {
    require(initial_rows < no_row, "initial_rows is " + std::to_string(initial_rows) +
                                       "; a table holds at most 2^32 - 1 rows");
    fit_to_room();
    while (room_.rows() < initial_rows && extend_room()) {
    }
    require(initial_rows <= room_.rows(), "initial_rows is " + std::to_string(initial_rows) +
                                              "; the budget has room for " +
                                              std::to_string(room_.rows()));
    if (initial_rows > 0) {
        index_.reserve(initial_rows);
        slabs_.ensure(static_cast<std::uint32_t>(initial_rows - 1));
        metadata_.ensure(static_cast<std::uint32_t>(initial_rows - 1));
    }
}

PendingCounts Table::empty_pending() {
    return {{config_.ttl_s, config_.limits.count_half_life_s},
            {mix64(config_.seed ^ 0x70656e64696e67ULL), config_.slot},
            &tally_};
}

Policy Table::policy() const {
    const std::shared_lock lock(mutex_);
    return {.optimizer = config_.optimizer,
            .first_order_optimizer = config_.first_order_optimizer,
            .probability = config_.probability,
            .min_count = config_.min_count,
            .ttl_s = config_.ttl_s,
            .min_rows = config_.limits.min_rows,
            .count_half_life_s = config_.limits.count_half_life_s};
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
    changed.limits.min_rows = policy.min_rows.value_or(changed.limits.min_rows);
    changed.limits.count_half_life_s =
        policy.count_half_life_s.value_or(changed.limits.count_half_life_s);
    config_ = checked(changed);
    pending_.change_rules({config_.ttl_s, config_.limits.count_half_life_s});
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
    const std::uint32_t enough = threshold_or_more_room();
    const auto known =
        enough > 1 || pending_.size() > 0 ? pending_.find(id, now_s) : PendingCounts::Known{};
    const std::uint64_t n_passed =
        passed(id, count, enough - std::min<std::uint64_t>(known.count, enough));
    if (known.count + n_passed >= enough) {
        if (const std::uint32_t row = give_birth(id, now_s); row != no_row) {
            metadata_.frequency(row) = add_saturating(known.count, count);
            counters_.n_sketch_admitted += known.is_estimate && known.count > 0 ? 1 : 0;
            if (pending_.size() > 0) {
                pending_.erase(id);
            }
            return row;
        }
        ++counters_.n_wanted;
    }
    counters_.n_filtered += count;
    pending_.add(id, known, static_cast<std::uint32_t>(n_passed), now_s, enough);
    return no_row;
}

// Returns no_row where the budget has no room.
std::uint32_t Table::give_birth(std::uint64_t id, std::uint32_t now_s) {
    if (numbers_.n_live() >= room_.rows() && !extend_room()) {
        return no_row;
    }
    const std::uint64_t hash = index_.hash(id);
    index_.prepare_insert(hash);
    looked_up_.ids.clear();
    const std::uint32_t row = numbers_.next();
    slabs_.ensure(row);
    metadata_.ensure(row);
    keep_rows({&row, 1});
    // The row's own version is at least the tombstone's: a delta that needed one carries the other.
    tombstones_.erase(id);
    // From here on nothing fails.
    numbers_.take();
    index_.place(id, hash, row);
    initialise_row(config_, slices_, id, slabs_.at(row), state(row));
    metadata_.key(row) = id;
    metadata_.set_version(row, counters_.version);
    metadata_.last_seen_s(row) = now_s;
    metadata_.born_s(row) = now_s;
    ++counters_.n_admitted;
    return row;
}

const float* Table::state(std::uint32_t row) const {
    return n_state_ == 1 ? &metadata_.record(row).state : slabs_.at(row) + config_.width();
}

float* Table::state(std::uint32_t row) {
    return const_cast<float*>(std::as_const(*this).state(row));
}

void Table::get_floats(std::uint32_t row, float* to) const {
    to = std::copy_n(slabs_.at(row), config_.width(), to);
    std::copy_n(state(row), n_state_, to);
}

void Table::set_floats(std::uint32_t row, const float* from) {
    std::copy_n(from, config_.width(), slabs_.at(row));
    std::copy_n(from + config_.width(), n_state_, state(row));
}

void Table::contains(Ids ids, std::uint8_t* out) const {
    const std::shared_lock lock(mutex_);
    for_each_row(index_, ids, fetch_nothing,
                 [&](std::size_t i, std::uint32_t row) { out[i] = row != no_row; });
}

void Table::pending(Ids ids, std::uint32_t* out) const {
    const std::shared_lock lock(mutex_);
    for (std::size_t i = 0; i < ids.size(); ++i) {
        out[i] = index_.find(ids[i]) == no_row
                     ? pending_.find(ids[i], static_cast<std::uint32_t>(counters_.clock_s)).count
                     : 0;
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
        .bytes = tally_.n_bytes,
        .clock_s = counters_.clock_s,
        .evicted = counters_.n_evicted,
        .sketch_admitted = counters_.n_sketch_admitted,
        .threshold = threshold(),
        .peak_bytes = tally_.peak_bytes,
        .budget_bytes = room_.n_bytes(),
        .max_rows = room_.rows(),
        .snapshot_bytes = snapshot_ == nullptr ? 0 : snapshot_->n_bytes(),
    };
}

std::uint64_t Table::size() const {
    const std::shared_lock lock(mutex_);
    return numbers_.n_live();
}

}  // namespace freshrank
