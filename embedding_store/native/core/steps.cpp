// Gradients on their way back: summed by row, each row's sum then moves it. Every share of the
// workers owns the rows whose number it leaves as a remainder, and meets them in the batch's order.
#include <cstring>

#include "pipeline.hpp"
#include "table.hpp"

namespace freshrank {

void Table::Sums::add(std::uint32_t row, const float* gradient, std::uint32_t width) {
    const auto [n, is_new] = rows.add(row, row);
    float* sum = values.data() + std::size_t{n} * width;
    if (is_new) {
        std::memcpy(sum, gradient, width * sizeof(float));
        return;
    }
    for (std::uint32_t column = 0; column < width; ++column) {
        sum[column] += gradient[column];
    }
}

// Calls add(sums, is_own) for every share's sums of at most n_entries rows, then steps them.
template <class Add>
std::uint64_t Table::step_by_share(std::size_t n_entries, Add&& add) {
    const unsigned n_shares = workers_->n_shares();
    sums_.resize(n_shares);
    for (Sums& sums : sums_) {
        sums.reset(n_entries, config_.width());
    }
    auto step = [&](unsigned share) {
        // Told apart where it is decided, not at every row: one thread owns all.
        if (n_shares == 1) {
            add(sums_[share], [](std::uint32_t row) { return row != no_row; });
        } else {
            add(sums_[share],
                [=](std::uint32_t row) { return row != no_row && row % n_shares == share; });
        }
        step_sums(sums_[share]);
    };
    workers_->run(step);
    std::uint64_t n_stepped = 0;
    for (const Sums& sums : sums_) {
        n_stepped += sums.rows.keys().size();
    }
    return n_stepped;
}

std::uint64_t Table::apply(Ids ids, const float* gradients) {
    const std::lock_guard lock(mutex_);
    if (!is_looked_up(ids)) {
        looked_up_.ids.clear();
        looked_up_.rows.resize(ids.size());
        find_rows(ids, looked_up_.rows.data());
    }
    const std::uint32_t width = config_.width();
    return step_by_share(ids.size(), [&](Sums& sums, auto is_own) {
        for (std::size_t i = 0; i < ids.size(); ++i) {
            if (is_own(looked_up_.rows[i])) {
                sums.add(looked_up_.rows[i], gradients + i * width, width);
            }
        }
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
    return step_by_share(reading_.rows.size(),
                         [&](Sums& sums, auto is_own) { add_pooled(sums, gradients, is_own); });
}

template <class IsOwn>
void Table::add_pooled(Sums& sums, const float* gradients, IsOwn is_own) const {
    const std::uint32_t width = config_.width();
    const std::uint32_t* row = reading_.rows.data();
    for (const auto& part : reading_.parts) {
        const float* gradient = gradients + part.slot * width;
        for (std::size_t i = 0; i < reading_.n_rows; ++i, gradient += reading_.n_slots * width) {
            const std::size_t n = part.n_ids(i);
            const float* share = gradient;
            if (part.is_mean && n > 1) {
                for (std::uint32_t column = 0; column < width; ++column) {
                    sums.mean[column] = gradient[column] / static_cast<float>(n);
                }
                share = sums.mean.data();
            }
            for (std::size_t k = 0; k < n; ++k, ++row) {
                if (is_own(*row)) {
                    sums.add(*row, share, width);
                }
            }
        }
    }
}

// One optimizer step for every row of the sums.
void Table::step_sums(Sums& sums) {
    const auto clock_s = static_cast<std::uint32_t>(counters_.clock_s);
    // Copies, which no store to a row can change: the loop keeps their values in registers.
    const SliceParameters first = slices_.front();
    const SliceParameters last = slices_.back();
    with_kind(first.kind, [&]<OptimizerKind kind>() {
        const auto step_first = [=](float* row, float* gradient) {
            step_slice<kind>(first, row, gradient, clock_s);
        };
        if (slices_.size() == 1) {
            return step_all(sums, step_first);
        }
        with_kind(last.kind, [&]<OptimizerKind other>() {
            step_all(sums, [=](float* row, float* gradient) {
                step_first(row, gradient);
                step_slice<other>(last, row, gradient, clock_s);
            });
        });
    });
}

template <class StepRow>
void Table::step_all(Sums& sums, StepRow step_row) {
    const auto rows = sums.rows.keys();
    const std::uint32_t width = config_.width();
    const std::uint32_t n_floats = width + config_.n_state();
    constexpr std::size_t ahead = 16;  // a large batch has pushed its first rows out of the cache
    for (std::size_t n = 0; n < rows.size(); ++n) {
        if (n + ahead < rows.size()) {
            prefetch(slabs_.lines(rows[n + ahead], n_floats));
            prefetch({&metadata_.version(rows[n + ahead]), sizeof(std::uint64_t)});
        }
        step_row(slabs_.at(rows[n]), sums.values.data() + n * width);
        metadata_.version(rows[n]) = counters_.version;
    }
}

}  // namespace freshrank
