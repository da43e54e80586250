// Gradients on their way back: summed by row, each row's sum then moves it. Every share of the
// workers owns whole cache lines of metadata, and meets its rows in the batch's order.
#include <algorithm>
#include <string>

#include "pipeline.hpp"
#include "step_rows.hpp"
#include "table.hpp"

namespace freshrank {

void Table::Moves::reset(std::size_t n_max, std::uint32_t width) {
    n_rows = n_repeats = 0;
    rows.resize(n_max);
    gradients.resize(n_max);
    repeats.resize(n_max);
    sums.resize(n_max / 2 * width);  // a sum takes two entries
    scratch.resize(width);
}

// Finds the rows of n entries, each once, and what moves it: the entry's gradient itself, or where
// there are more a sum in the batch's order. No hash tells rows that came before: a row's version
// word, which nobody reads meanwhile, holds the row's number in this batch, and any other value is
// told from one by asking whose number that is. Nothing throws from here to the step, which gives
// every row its version back.
template <class EntryOf, class GradientOf>
void Table::Moves::gather(std::span<const std::uint32_t> row_of, std::size_t n_entries,
                          EntryOf entry_of, Metadata& metadata, GradientOf gradient_of) {
    constexpr std::size_t ahead = 16;
    auto n = static_cast<std::uint32_t>(n_rows);
    for (std::size_t k = 0; k < n_entries; ++k) {
        if (k + ahead < n_entries && row_of[entry_of(k + ahead)] != no_row) {
            prefetch(metadata.lines(row_of[entry_of(k + ahead)]));
        }
        const std::size_t i = entry_of(k);
        const std::uint32_t row = row_of[i];
        if (row == no_row) {
            continue;
        }
        std::uint32_t& mark = metadata.record(row).version_word;
        const bool is_repeat = (mark < n) & (rows[mark < n ? mark : 0] == row);
        repeats[n_repeats] = static_cast<std::uint32_t>(i);
        n_repeats += is_repeat ? 1 : 0;
        rows[n] = row;
        gradients[n] = gradient_of(i);
        mark = is_repeat ? mark : n;
        n += is_repeat ? 0 : 1;
    }
    n_rows = n;
}

template <class GradientOf>
void Table::Moves::sum_repeats(std::span<const std::uint32_t> row_of, const Metadata& metadata,
                               std::uint32_t width, GradientOf gradient_of) {
    float* free = sums.data();
    for (std::size_t k = 0; k < n_repeats; ++k) {
        const float*& gradient = gradients[metadata.record(row_of[repeats[k]]).version_word];
        const bool is_sum = gradient >= sums.data() && gradient < free;
        if (!is_sum) {
            gradient = std::copy_n(gradient, width, free) - width;
            free += width;
        }
        add_to(const_cast<float*>(gradient), gradient_of(repeats[k]), width);
    }
}

// Moves every row of the entries once; returns how many rows that were.
template <class GradientOf>
std::uint64_t Table::step(std::span<const std::uint32_t> entries, GradientOf gradient_of) {
    keep_rows(entries);
    const unsigned n_shares = workers_->n_shares();
    moves_.resize(n_shares);
    for (Moves& moves : moves_) {
        moves.reset(entries.size(), config_.width());
    }
    if (n_shares > 1) {  // one thread owns all
        owned_.reset(entries.size(), n_shares);
        workers_->run_ranges(entries.size(), [&](std::size_t i, std::size_t end, unsigned share) {
            owned_.tell(share, [&](auto tell) {
                for (; i < end; ++i) {
                    tell(i, owner_of_row(entries[i]));
                }
            });
        });
    }
    const StepRows step_rows = best_steps(slices_);
    workers_->run([&](unsigned share) {
        Moves& moves = moves_[share];
        if (n_shares == 1) {
            moves.gather(
                entries, entries.size(), [](std::size_t k) { return k; }, metadata_, gradient_of);
        } else {
            owned_.each(share, [&](std::span<const std::uint32_t> own) {
                moves.gather(
                    entries, own.size(), [=](std::size_t k) { return own[k]; }, metadata_,
                    gradient_of);
            });
        }
        moves.sum_repeats(entries, metadata_, config_.width(), gradient_of);
        step_rows({.slices = slices_,
                   .slabs = slabs_.view(),
                   .metadata = metadata_,
                   .width = config_.width(),
                   .n_state = n_state_,
                   .clock_s = static_cast<std::uint32_t>(counters_.clock_s),
                   .version = static_cast<std::uint32_t>(counters_.version),
                   .rows = moves.rows.data(),
                   .gradients = moves.gradients.data(),
                   .n_rows = moves.n_rows,
                   .scratch = moves.scratch.data()});
    });
    std::uint64_t n_stepped = 0;
    for (const Moves& moves : moves_) {
        n_stepped += moves.n_rows;
    }
    return n_stepped;
}

std::uint64_t Table::apply(Ids ids, const float* gradients) {
    const std::lock_guard lock(mutex_);
    // No ids are what is left of a batch whose rows may have gone; its rows are not theirs.
    if (looked_up_.rows.size() != ids.size() || !std::ranges::equal(looked_up_.ids, ids)) {
        find_again(ids);
    }
    const std::uint32_t width = config_.width();
    return step(looked_up_.rows, [=](std::size_t i) { return gradients + i * width; });
}

void Table::find_again(Ids ids) {
    looked_up_.ids.clear();
    looked_up_.rows.resize(ids.size());
    find_rows(ids, looked_up_.rows.data());
}

void Table::BagGradients::reset(std::size_t n_ids, std::size_t n_bags, std::uint32_t n_floats) {
    of_ids.clear();
    of_ids.reserve(n_ids);
    parts.clear();
    parts.reserve(n_bags * n_floats);
    width = n_floats;
}

// What each of n_ids ids of a bag gets of the bag's gradient.
void Table::BagGradients::add(const float* gradient, Pooling pooling, std::size_t n_ids) {
    if (const float by = divisor(pooling, n_ids); by != 1) {
        parts.insert(parts.end(), gradient, gradient + width);
        gradient = parts.data() + parts.size() - width;
        divide(parts.data() + parts.size() - width, width, by);
    }
    of_ids.insert(of_ids.end(), n_ids, gradient);
}

std::uint64_t Table::apply_pooled(const IdBags& bags, const float* gradients) {
    const std::lock_guard lock(mutex_);
    find_again(bags.ids);
    const std::uint32_t width = config_.width();
    bag_gradients_.reset(bags.ids.size(), bags.pooling == Pooling::sum ? 0 : bags.size(), width);
    for (std::size_t bag = 0; bag < bags.size(); ++bag) {
        bag_gradients_.add(gradients + bag * width, bags.pooling, bags.length(bag));
    }
    return step(looked_up_.rows, [this](std::size_t i) { return bag_gradients_.of_ids[i]; });
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
    const std::uint32_t width = config_.width();
    const auto n_divided =
        static_cast<std::size_t>(std::ranges::count_if(reading_.parts, [](const auto& part) {
            return part.pooling != Pooling::sum && !part.is_single;
        }));
    bag_gradients_.reset(reading_.rows.size(), n_divided * n_rows, width);
    for (const auto& part : reading_.parts) {
        for (std::size_t i = 0; i < n_rows; ++i) {
            bag_gradients_.add(gradients + (i * n_slots + part.slot) * width, part.pooling,
                               part.n_ids(i));
        }
    }
    return step(reading_.rows, [this](std::size_t i) { return bag_gradients_.of_ids[i]; });
}

}  // namespace freshrank
