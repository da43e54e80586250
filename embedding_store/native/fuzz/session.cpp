#include "fuzz/session.hpp"

#include <algorithm>
#include <array>

namespace freshrank::fuzz {

namespace {

TableConfig config_of(Input& input) {
    TableConfig config;
    config.dim = input.below(5);
    config.first_order = config.dim == 0 || input.below(2) == 1;
    const auto optimizer = [&] {
        OptimizerConfig own;
        own.kind = static_cast<OptimizerKind>(input.below(n_optimizer_kinds));
        own.lr = 0.5;
        own.eps = 0.25;
        own.beta = 1;
        own.beta1 = 0.5;
        own.beta2 = 0.75;
        own.accumulator_half_life_s = own.is_adagrad() ? input.one_of({0U, 0U, 0U, 30U}) : 0;
        own.clip_norm = input.one_of({0.0, 0.0, 0.0, 1.0}) * (own.kind != OptimizerKind::sgd);
        return own;
    };
    config.optimizer = optimizer();
    if (config.first_order && input.below(4) == 3) {
        config.first_order_optimizer = optimizer();
    }
    config.slot = 3;
    config.seed = 7;
    config.init_scale = 0.1;
    config.min_count = 1 + input.below(4);
    config.probability = input.one_of({1.0, 1.0, 0.5});
    config.ttl_s = input.one_of({0U, 20U, 50U});
    config.limits.min_rows = input.one_of({0U, 2U});
    config.limits.count_half_life_s = input.one_of({0U, 7U, 40U});
    // Wide rows fill a small budget soon; plain steps, which the model knows.
    if (const std::uint32_t limits = input.below(8); limits >= 5) {
        config.dim = 64;
        config.optimizer = {.kind = OptimizerKind::sgd, .lr = 0.5};
        config.first_order_optimizer.reset();
        config.limits.pending_bytes = limits == 7 ? min_pending_bytes : 0;
        config.limits.max_bytes = limits == 5 ? 0 : input.one_of({4U << 20, 6U << 20});
        if (limits == 5) {
            config.limits.pending_bytes = min_pending_bytes;
        }
    }
    return config;
}

// Small, so that sums are exact in any order; long runs of ids need one byte of input.
float some_value(std::uint8_t from, std::size_t i) {
    return static_cast<float>(static_cast<int>((from + i * 7) % 17) - 8) / 4;
}

}  // namespace

Session::Session(Input& input)
    : input_(input),
      model_(config_of(input)),
      replica_(model_.config.width(), 0, RowType::float32) {
    tables_.push_back(std::make_unique<Table>(model_.config, input.one_of({0U, 0U, 300U})));
}

std::vector<float> Session::some_values(std::size_t n) {
    std::vector<float> values(n);
    const std::uint8_t from = input_.byte();
    for (std::size_t i = 0; i < n; ++i) {
        values[i] = some_value(from, i);
    }
    return values;
}

void Session::step() {
    using Call = void (Session::*)();
    static constexpr Call calls[] = {
        &Session::lookup,        &Session::lookup_or_admit, &Session::lookup_or_admit,
        &Session::apply,         &Session::read_and_learn,  &Session::lookup_pooled,
        &Session::expire,        &Session::erase,           &Session::close_version,
        &Session::delta,         &Session::replicate,       &Session::put_rows,
        &Session::configure,     &Session::inspect,         &Session::restore_a_copy,
        &Session::begin_snapshot};
    (this->*input_.one_of(calls))();
    compare_counts();
    read_snapshot();
}

void Session::lookup() {
    const auto ids = some_ids();
    const auto rows = on_all([&](Table& table) {
        std::vector<float> out(ids.size() * model_.config.width());
        table.lookup(ids, out.data());
        return out;
    });
    compare_rows(ids, *rows);
}

void Session::lookup_or_admit() {
    const auto ids = some_ids();
    std::vector<std::uint32_t> counts(ids.size(), input_.one_of({1U, 1U, 3U, 40U, 70000U}));
    for (std::size_t i = 0; i < std::min<std::size_t>(counts.size(), 8); ++i) {
        counts[i] = input_.one_of({1U, 0U, 2U, 5U});
    }
    const auto now_s = some_time_s();
    const auto rows = on_all([&](Table& table) {
        std::vector<float> out(ids.size() * model_.config.width());
        table.lookup_or_admit(ids, counts, now_s, out.data());
        return out;
    });
    count(ids, counts, now_s);
    compare_rows(ids, *rows);
}

// What the table has just counted.
void Session::count(const std::vector<std::uint64_t>& ids, const std::vector<std::uint32_t>& counts,
                    std::uint32_t now_s) {
    model_.move_clock(now_s);
    for (std::size_t i = 0; i < ids.size(); ++i) {
        if (counts[i] == 0) {
            continue;
        }
        if (!model_.has_limits()) {
            model_.count(ids[i], counts[i], now_s);
        } else if (const auto own = model_.rows.find(ids[i]); own != model_.rows.end()) {
            model_.touch(own->second, counts[i], now_s);
        }
    }
    follow(ids, now_s);
}

// Under limits: lets go what the table let go, and gives birth to those it gave.
void Session::follow(const std::vector<std::uint64_t>& born, std::uint32_t now_s) {
    if (!model_.has_limits()) {
        return;
    }
    const auto is_there = [&](const std::vector<std::uint64_t>& ids) {
        std::vector<std::uint8_t> found(ids.size());
        tables_[0]->contains(ids, found.data());
        return found;
    };
    const auto held = sorted_keys(model_.rows, any);
    const auto is_held = is_there(held);
    for (std::size_t i = 0; i < held.size(); ++i) {
        if (is_held[i] == 0) {
            model_.remove(held[i]);
        }
    }
    const auto is_born = is_there(born);
    const std::size_t width = model_.config.width();
    std::vector<float> rows(born.size() * width);
    tables_[0]->lookup(born, rows.data());
    for (std::size_t i = 0; i < born.size(); ++i) {
        const auto own = model_.rows.find(born[i]);
        const std::vector<float> row(rows.data() + i * width, rows.data() + (i + 1) * width);
        const bool is_back = own != model_.rows.end() && row != own->second.weights &&
                             row == model_.initial_weights(born[i]);  // evicted, and born again
        if (is_born[i] != 0 && (own == model_.rows.end() || is_back)) {
            model_.give_birth(born[i], now_s);
        }
    }
}

void Session::compare_rows(const std::vector<std::uint64_t>& ids,
                           const std::vector<float>& rows) const {
    const std::size_t width = model_.config.width();
    for (std::size_t i = 0; i < ids.size(); ++i) {
        const auto own = model_.rows.find(ids[i]);
        for (std::size_t column = 0; column < width; ++column) {
            const float value = rows[i * width + column];
            if (own == model_.rows.end()) {
                check(value == 0, "an absent id reads zeros");
            } else if (model_.has_weights()) {
                check(value == own->second.weights[column], "a row is its history's");
            }
        }
    }
}

void Session::compare_counts() const {
    const auto statistics = tables_[0]->statistics();
    check(statistics.rows == model_.rows.size(), "rows");
    check(statistics.clock_s == model_.clock_s, "clock");
    check(tables_[0]->version() == model_.version, "version");
    if (!model_.has_limits()) {
        check(statistics.tombstones == model_.tombstones.size(), "tombstones");
        check(statistics.pending == model_.pending.size(), "pending");
        check(statistics.admitted == model_.n_admitted, "admitted");
        check(statistics.filtered == model_.n_filtered, "filtered");
        return;
    }
    if (const std::uint64_t max_bytes = model_.config.limits.max_bytes; max_bytes > 0) {
        check(statistics.peak_bytes <= statistics.budget_bytes, "within its room");
        check(statistics.budget_bytes <= max_bytes, "within its budget");
        check(statistics.rows <= statistics.max_rows, "rows within their room");
    }
}

}  // namespace freshrank::fuzz
