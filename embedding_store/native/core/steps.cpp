// Gradients on their way back: summed by row, each row's sum then moves it. Every share of the
// workers owns the rows whose number it leaves as a remainder, and meets them in the batch's order.
#include <algorithm>
#include <cstring>
#include <string>

#include "pipeline.hpp"
#include "table.hpp"

namespace freshrank {

namespace {

// Calls add(row, gradient) for every id of n bags, in order; returns the row after the last.
template <class Length, class Add>
const std::uint32_t* for_each_part(const std::uint32_t* row, std::size_t n, Length&& length,
                                   Pooling pooling, const float* gradients, std::size_t stride,
                                   std::vector<float>& scratch, Add&& add) {
    for (std::size_t bag = 0; bag < n; ++bag, gradients += stride) {
        const std::size_t n_ids = length(bag);
        const float* part = share_of(gradients, divisor(pooling, n_ids), scratch);
        for (std::size_t k = 0; k < n_ids; ++k, ++row) {
            add(*row, part);
        }
    }
    return row;
}

}  // namespace

void Table::Sums::add(std::uint32_t row, const float* gradient, std::uint32_t width) {
    const auto [n, is_new] = rows.add(row, row);
    float* sum = values.data() + std::size_t{n} * width;
    if (is_new) {
        std::memcpy(sum, gradient, width * sizeof(float));
        return;
    }
    add_to(sum, gradient, width);
}

// Calls add(sums, is_own) for every share's sums of at most n_entries rows, then steps them.
template <class Add>
std::uint64_t Table::step_by_share(std::size_t n_entries, Add&& add) {
    const unsigned n_shares = workers_->n_shares();
    sums_.resize(n_shares);
    for (Sums& sums : sums_) {
        sums.reset(n_entries, config_.width());
    }
    workers_->run([&](unsigned share) {
        // Told apart where it is decided, not at every row: one thread owns all.
        if (n_shares == 1) {
            add(sums_[share], [](std::uint32_t row) { return row != no_row; });
        } else {
            add(sums_[share],
                [=](std::uint32_t row) { return row != no_row && row % n_shares == share; });
        }
        step_sums(sums_[share]);
    });
    std::uint64_t n_stepped = 0;
    for (const Sums& sums : sums_) {
        n_stepped += sums.rows.keys().size();
    }
    return n_stepped;
}

void Table::find_again(Ids ids) {
    looked_up_.ids.clear();
    looked_up_.rows.resize(ids.size());
    find_rows(ids, looked_up_.rows.data());
}

std::uint64_t Table::apply(Ids ids, const float* gradients) {
    const std::lock_guard lock(mutex_);
    if (!std::ranges::equal(looked_up_.ids, ids)) {
        find_again(ids);
    }
    keep_rows(looked_up_.rows);
    const std::uint32_t width = config_.width();
    return step_by_share(ids.size(), [&](Sums& sums, auto is_own) {
        for (std::size_t i = 0; i < ids.size(); ++i) {
            if (is_own(looked_up_.rows[i])) {
                sums.add(looked_up_.rows[i], gradients + i * width, width);
            }
        }
    });
}

std::uint64_t Table::apply_pooled(const IdBags& bags, const float* gradients) {
    const std::lock_guard lock(mutex_);
    find_again(bags.ids);
    keep_rows(looked_up_.rows);
    const std::uint32_t width = config_.width();
    return step_by_share(bags.ids.size(), [&](Sums& sums, auto is_own) {
        for_each_part(
            looked_up_.rows.data(), bags.size(), [&](std::size_t bag) { return bags.length(bag); },
            bags.pooling, gradients, width, sums.part,
            [&](std::uint32_t row, const float* part) {
                if (is_own(row)) {
                    sums.add(row, part, width);
                }
            });
    });
}

std::uint64_t Table::learn(std::size_t n_rows, std::size_t n_slots, const float* gradients) {
    const std::lock_guard lock(mutex_);
    require(reading_.is_open && reading_.n_rows == n_rows && reading_.n_slots == n_slots &&
                reading_.n_removed == counters_.n_removed(),
            "there is no read of " + std::to_string(n_rows) + " rows and " +
                std::to_string(n_slots) +
                " slots to learn from: each read can be learned once, and not after rows left; "
                "call read with the batch first");
    reading_.is_open = false;
    keep_rows(reading_.rows);
    const std::uint32_t width = config_.width();
    return step_by_share(reading_.rows.size(), [&](Sums& sums, auto is_own) {
        const std::uint32_t* row = reading_.rows.data();
        for (const auto& part : reading_.parts) {
            row = for_each_part(
                row, n_rows, [&](std::size_t i) { return part.n_ids(i); }, part.pooling,
                gradients + part.slot * width, n_slots * width, sums.part,
                [&](std::uint32_t own, const float* gradient) {
                    if (is_own(own)) {
                        sums.add(own, gradient, width);
                    }
                });
        }
    });
}

// One optimizer step for every row of the sums.
void Table::step_sums(Sums& sums) {
    const auto clock_s = static_cast<std::uint32_t>(counters_.clock_s);
    // Copies, which no store to a row can change: the loop keeps their values in registers.
    const SliceParameters first = slices_.front();
    const SliceParameters last = slices_.back();
    with_kind(first.kind, [&]<OptimizerKind kind>() {
        const auto step_first = [=](float* weights, float* state, float* gradient) {
            step_slice<kind>(first, weights, state, gradient, clock_s);
        };
        if (slices_.size() == 1) {
            return step_all(sums, step_first);
        }
        with_kind(last.kind, [&]<OptimizerKind other>() {
            step_all(sums, [=](float* weights, float* state, float* gradient) {
                step_first(weights, state, gradient);
                step_slice<other>(last, weights, state, gradient, clock_s);
            });
        });
    });
}

template <class StepRow>
void Table::step_all(Sums& sums, StepRow step_row) {
    const auto rows = sums.rows.keys();
    const std::uint32_t width = config_.width();
    const std::uint32_t n_floats = width + config_.n_state_behind();
    constexpr std::size_t ahead = 16;  // a large batch has pushed its first rows out of the cache
    for (std::size_t n = 0; n < rows.size(); ++n) {
        if (n + ahead < rows.size()) {
            prefetch(slabs_.lines(rows[n + ahead], n_floats));
            prefetch({&metadata_.record(rows[n + ahead]), sizeof(Metadata::Record)});
        }
        step_row(slabs_.at(rows[n]), state(rows[n]), sums.values.data() + n * width);
        metadata_.set_version(rows[n], counters_.version);
    }
}

}  // namespace freshrank
