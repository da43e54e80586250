// The calls of a session that move, question and compare state as a whole.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "fuzz/session.hpp"

namespace freshrank::fuzz {

void Session::delta() {
    const std::uint64_t since = std::min<std::uint64_t>(input_.below(8), model_.version);
    const Delta delta = tables_[0]->delta(since);
    const auto changed =
        sorted_keys(model_.rows, [&](const ModelRow& row) { return row.version > since; });
    check(delta.keys == changed, "what has changed, once each");
    compare_rows(delta.keys, delta.rows);
    const auto gone =
        sorted_keys(model_.tombstones, [&](std::uint64_t version) { return version > since; });
    check(delta.tombstones == gone, "what has gone");
}

// A replica that follows the deltas holds the table.
void Session::replicate() {
    const Delta delta = tables_[0]->delta(replicated_);
    replica_.upsert(delta.keys, delta.rows.data());
    replica_.remove(delta.tombstones);
    replicated_ = on_all([](Table& table) { return One{table.advance()}; })->front();
    ++model_.version;
    const auto keys = tables_[0]->keys();
    check(replica_.keys() == keys, "the replica's ids");
    std::vector<float> rows(keys.size() * model_.config.width());
    std::vector<float> copies(rows.size());
    std::vector<std::uint8_t> found(keys.size());
    tables_[0]->lookup(keys, rows.data());
    replica_.lookup(keys, copies.data(), found.data());
    check(same_bytes(rows, copies), "the replica's rows");
}

void Session::put_rows() {
    const std::size_t width = model_.config.width();
    const std::size_t n_floats = width + model_.config.n_state();
    const auto keys = input_.ids(8);
    auto values = some_values(keys.size() * n_floats);
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = i % n_floats < width ? values[i] : std::abs(values[i]);  // sums of squares
    }
    const std::uint32_t seen_s = some_time_s();
    const std::vector<std::uint32_t> seen(keys.size(), seen_s);
    const std::vector<std::uint32_t> frequency(keys.size(), 5);
    const RowsView view{keys, values.data(), {}, seen, seen, frequency};
    if (model_.has_limits() || keys.empty() || !on_all([&](Table& table) {
            table.put_rows(view);
            return One{0};
        })) {
        return;
    }
    model_.move_clock(seen_s);
    for (std::size_t i = 0; i < keys.size(); ++i) {
        ModelRow& row = model_.rows.contains(keys[i]) ? model_.rows[keys[i]]
                                                      : model_.give_birth(keys[i], seen_s);
        const auto own = values.begin() + static_cast<std::ptrdiff_t>(i * n_floats);
        const auto middle = own + static_cast<std::ptrdiff_t>(width);
        row.weights.assign(own, middle);
        row.squares.assign(middle, own + static_cast<std::ptrdiff_t>(n_floats));
        row.last_seen_s = row.born_s = seen_s;
        row.frequency = 5;
        row.version = model_.version;
    }
}

void Session::configure() {
    TableConfig changed = model_.config;
    changed.optimizer.lr = input_.one_of({0.5, 0.25});
    changed.min_count = 1 + input_.below(4);
    changed.probability = input_.one_of({1.0, 0.5});
    changed.ttl_s = input_.one_of({0U, 20U, 50U});
    changed.limits.min_rows = input_.below(3);
    changed.limits.count_half_life_s = input_.one_of({0U, 7U, 40U});
    const Policy policy{changed.optimizer,
                        changed.first_order_optimizer,
                        changed.probability,
                        changed.min_count,
                        changed.ttl_s,
                        changed.limits.min_rows,
                        changed.limits.count_half_life_s};
    on_all([&](Table& table) {
        table.configure(policy);
        return One{0};
    });
    model_.config = changed;
    model_.move_clock(model_.clock_s);
}

void Session::inspect() {
    using State = Inspection::State;
    const std::uint64_t id = input_.id();
    const auto found =
        on_all([&](Table& table) { return std::vector{table.inspect(id)}; })->front();
    if (const auto own = model_.rows.find(id); own != model_.rows.end()) {
        const bool is_stale = model_.is_stale(own->second.last_seen_s);
        check(found.state == (is_stale ? State::expired : State::admitted), "its row's state");
        check(model_.has_limits() || found.frequency == own->second.frequency, "its frequency");
        check(found.version == own->second.version, "its version");
    } else if (model_.has_limits()) {
        check(found.state != State::admitted, "no row");
    } else if (const auto count = waiting(id); count > 0) {
        check(found.state == State::pending && found.count == count, "its count");
    } else if (const auto gone = model_.tombstones.find(id); gone != model_.tombstones.end()) {
        check(found.state == State::removed && found.version == gone->second, "its removal");
    } else {
        check(found.state == State::absent, "unknown");
    }
}

std::uint32_t Session::waiting(std::uint64_t id) const {
    const auto own = model_.pending.find(id);
    return own == model_.pending.end()
               ? 0
               : model_.faded(own->second.count, own->second.seen_s, model_.clock_s);
}

// From now on beside the original, in place of an older copy, and on another number of threads.
void Session::restore_a_copy() {
    if (snapshot_ != nullptr) {
        return;
    }
    chain_ = {tables_[0]->snapshot()};
    tables_.resize(1);
    tables_.push_back(restore(chain_));
    tables_[1]->set_threads(1 + input_.below(3));
    check(tables_[1]->snapshot() == chain_[0], "the same file again");
    if (input_.below(2) == 0) {
        std::swap(tables_[0], tables_[1]);
    }
}

// Whole, or an increment to the one before; what it must restore to, the copy tells.
void Session::begin_snapshot() {
    if (snapshot_ != nullptr || tables_.size() < 2) {
        return;
    }
    expected_ = tables_[1]->snapshot();
    if (chain_.empty() || input_.below(3) == 0) {
        chain_.clear();
        snapshot_ = tables_[0]->begin_snapshot();
    } else {
        std::uint64_t since;
        std::memcpy(&since, &*chain_.back().end() - sizeof since, sizeof since);
        snapshot_ = tables_[0]->begin_snapshot(since);
    }
    chain_.emplace_back();
}

// One piece, between two calls.
void Session::read_snapshot() {
    if (snapshot_ == nullptr) {
        return;
    }
    Bytes piece;
    if (snapshot_->next(piece)) {
        chain_.back().insert(chain_.back().end(), piece.begin(), piece.end());
        return;
    }
    snapshot_.reset();
    check(restore(chain_)->snapshot() == expected_, "a snapshot is of the instant it began");
}

void Session::compare_all() {
    const auto keys = tables_[0]->keys();
    check(keys == sorted_keys(model_.rows, any), "the same ids");
    std::vector<float> rows(keys.size() * model_.config.width());
    tables_[0]->lookup(keys, rows.data());
    compare_rows(keys, rows);
    std::vector<std::uint32_t> born_s(keys.size());
    std::vector<std::uint32_t> seen_s(keys.size());
    tables_[0]->born_s(keys, born_s.data());
    tables_[0]->last_seen_s(keys, seen_s.data());
    for (std::size_t i = 0; i < keys.size(); ++i) {
        const ModelRow& own = model_.rows.at(keys[i]);
        check(born_s[i] == own.born_s && seen_s[i] == own.last_seen_s, "times");
    }
    const auto ids = sorted_keys(model_.pending, any);
    std::vector<std::uint32_t> counts(ids.size());
    tables_[0]->pending(ids, counts.data());
    for (std::size_t i = 0; i < ids.size(); ++i) {
        check(counts[i] == waiting(ids[i]), "pending count");
    }
    if (snapshot_ == nullptr) {
        on_all([](Table& table) { return table.snapshot(); });
        chain_.clear();  // none of these
    }
}

}  // namespace freshrank::fuzz
