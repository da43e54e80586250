// A batch's way through a table: occurrences counted, rows read, gradients summed and applied.
#include <array>
#include <cstring>

#include "pipeline.hpp"
#include "table.hpp"

namespace freshrank {

// Writes the row of every id, after counting count_of(i) occurrences of it. An id that is born on
// the way has no_row in the entries before; `find_newborn` gives them the row.
template <class CountOf>
void Table::count(Ids ids, std::uint32_t now_s, std::uint32_t* rows, CountOf&& count_of) {
    const std::uint64_t n_before = counters_.n_admitted;
    for_each_row(
        index_, ids,
        [&](std::uint32_t row) {
            return std::array{Lines{&metadata_.record(row), sizeof(Metadata::Record)}};
        },
        [&](std::size_t i, std::uint32_t row) {
            if (const std::uint32_t n = count_of(i); n != 0) {
                // A group found absent may hold an id born since, earlier in this batch.
                if (row == no_row && counters_.n_admitted != n_before) {
                    row = index_.find(ids[i]);
                }
                if (row == no_row) {
                    row = admit(ids[i], n, now_s);
                } else {
                    touch(row, n, now_s);
                }
            }
            rows[i] = row;
        });
}

void Table::find_newborn(Ids ids, std::uint32_t* rows) const {
    for (std::size_t i = 0; i < ids.size(); ++i) {
        if (rows[i] == no_row) {
            rows[i] = index_.find(ids[i]);
        }
    }
}

void Table::lookup_or_admit(Ids ids, std::span<const std::uint32_t> counts, std::uint32_t now_s,
                            float* out) {
    const std::lock_guard lock(mutex_);
    move_clock(now_s);
    make_room();
    const std::uint64_t n_before = counters_.n_admitted;
    std::vector<std::uint32_t> rows(ids.size());
    count(ids, now_s, rows.data(), [&](std::size_t i) { return counts[i]; });
    if (counters_.n_admitted != n_before) {
        find_newborn(ids, rows.data());
    }
    const std::uint32_t width = config_.width();
    with_width(width, [&](auto n_floats) {
        for (std::size_t i = 0; i < ids.size(); ++i) {
            fetch_ahead(slabs_, rows, i, width);
            copy_row(slabs_, rows[i], n_floats, out + i * n_floats);
        }
    });
}

void Table::read(std::span<const Bags> bags, std::span<const std::uint64_t> requests,
                 std::uint32_t now_s, std::size_t n_slots, float* pooled) {
    const std::lock_guard lock(mutex_);
    move_clock(now_s);
    make_room();
    const std::uint64_t n_before = counters_.n_admitted;
    remember(bags, requests.size(), n_slots);
    occurrences_.reset(reading_.rows.size());
    std::uint32_t* rows = reading_.rows.data();
    for (const Bags& own : bags) {
        std::size_t bag = 0;  // the batch's row of the entry: entries come in order
        count(own.of.ids, now_s, rows, [&](std::size_t i) -> std::uint32_t {
            while (static_cast<std::size_t>(own.of.offsets[bag + 1]) <= i) {
                ++bag;
            }
            if (!own.is_counted[bag]) {
                return 0;
            }
            const std::uint64_t hash = mix64(own.of.ids[i] ^ mix64(requests[bag]));
            return occurrences_.add({requests[bag], own.of.ids[i]}, hash).second ? 1 : 0;
        });
        rows += own.of.ids.size();
    }
    if (counters_.n_admitted != n_before) {
        rows = reading_.rows.data();
        for (const Bags& own : bags) {
            find_newborn(own.of.ids, rows);
            rows += own.of.ids.size();
        }
    }
    pool(bags, pooled);
    reading_.is_open = true;
}

void Table::remember(std::span<const Bags> bags, std::size_t n_rows, std::size_t n_slots) {
    std::size_t n_ids = 0;
    reading_.parts.resize(bags.size());
    for (std::size_t p = 0; p < bags.size(); ++p) {
        const Bags& own = bags[p];
        auto& part = reading_.parts[p];
        part.slot = own.slot;
        part.pooling = own.of.pooling;
        part.is_single = own.of.ids.size() == n_rows;
        for (std::size_t i = 0; part.is_single && i < n_rows; ++i) {
            part.is_single = own.of.offsets[i + 1] - own.of.offsets[i] == 1;
        }
        part.offsets.clear();
        if (!part.is_single) {
            part.offsets.assign(own.of.offsets.begin(), own.of.offsets.end());
        }
        n_ids += own.of.ids.size();
    }
    reading_.rows.resize(n_ids);
    reading_.n_rows = n_rows;
    reading_.n_slots = n_slots;
    reading_.n_removed = counters_.n_removed();
    reading_.is_open = false;  // until every row is known
}

void Table::pool(std::span<const Bags> bags, float* pooled) const {
    const std::uint32_t width = config_.width();
    const std::size_t stride = reading_.n_slots * width;
    std::span<const std::uint32_t> rows = reading_.rows;
    with_width(width, [&](auto n_floats) {
        std::size_t at = 0;
        for (std::size_t p = 0; p < bags.size(); ++p) {
            const auto& part = reading_.parts[p];
            float* to = pooled + part.slot * n_floats;
            for (std::size_t i = 0; i < reading_.n_rows; ++i, to += stride) {
                const std::size_t n =
                    part.is_single
                        ? 1
                        : static_cast<std::size_t>(part.offsets[i + 1] - part.offsets[i]);
                if (n == 0) {
                    std::memset(to, 0, n_floats * sizeof(float));
                }
                for (std::size_t k = 0; k < n; ++k, ++at) {
                    fetch_ahead(slabs_, rows, at, width);
                    if (k == 0) {
                        copy_row(slabs_, rows[at], n_floats, to);
                    } else if (rows[at] != no_row) {
                        add_to(to, slabs_.at(rows[at]), n_floats);
                    }
                }
                divide(to, n_floats, divisor(part.pooling, n));
            }
        }
    });
}

void Table::Sums::add(std::uint32_t row, const float* gradient, std::uint32_t width) {
    const auto [n, is_new] = rows.add(row, row);
    float* sum = values.data() + std::size_t{n} * width;
    if (is_new) {
        std::memcpy(sum, gradient, width * sizeof(float));
        return;
    }
    add_to(sum, gradient, width);
}

std::uint64_t Table::apply(Ids ids, const float* gradients) {
    const std::lock_guard lock(mutex_);
    const std::uint32_t width = config_.width();
    sums_.reset(ids.size(), width);
    for_each_row(index_, ids, fetch_nothing, [&](std::size_t i, std::uint32_t row) {
        if (row != no_row) {
            sums_.add(row, gradients + i * width, width);
        }
    });
    return step_sums();
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
    sums_.reset(reading_.rows.size(), width);
    std::vector<float> scratch(width);
    const std::uint32_t* row = reading_.rows.data();
    for (const auto& part : reading_.parts) {
        const float* gradient = gradients + part.slot * width;
        for (std::size_t i = 0; i < n_rows; ++i, gradient += n_slots * width) {
            const std::size_t n =
                part.is_single ? 1
                               : static_cast<std::size_t>(part.offsets[i + 1] - part.offsets[i]);
            const float* share = share_of(gradient, divisor(part.pooling, n), scratch);
            for (std::size_t k = 0; k < n; ++k, ++row) {
                if (*row != no_row) {
                    sums_.add(*row, share, width);
                }
            }
        }
    }
    return step_sums();
}

void Table::lookup_pooled(const IdBags& bags, float* out) const {
    const std::shared_lock lock(mutex_);
    const std::uint32_t width = config_.width();
    with_width(width, [&](auto n_floats) {
        pool_bags(bags, n_floats, out, [&](auto&& use) {
            for_each_row(
                index_, bags.ids,
                [&](std::uint32_t row) { return std::array{slabs_.lines(row, width)}; },
                [&](std::size_t i, std::uint32_t row) {
                    if (row != no_row) {
                        use(i, slabs_.at(row));
                    }
                });
        });
    });
}

std::uint64_t Table::apply_pooled(const IdBags& bags, const float* gradients) {
    const std::lock_guard lock(mutex_);
    const std::uint32_t width = config_.width();
    sums_.reset(bags.ids.size(), width);
    std::vector<float> scratch(width);
    const float* share = nullptr;
    std::size_t n_open = 0;  // bags begun: the last of them is the current one
    for_each_row(index_, bags.ids, fetch_nothing, [&](std::size_t i, std::uint32_t row) {
        while (n_open == 0 || static_cast<std::size_t>(bags.offsets[n_open]) <= i) {
            const float by = divisor(bags.pooling, bags.length(n_open));
            share = share_of(gradients + n_open * width, by, scratch);
            ++n_open;
        }
        if (row != no_row) {
            sums_.add(row, share, width);
        }
    });
    return step_sums();
}

// One optimizer step for every row of the sums.
std::uint64_t Table::step_sums() {
    const auto clock_s = static_cast<std::uint32_t>(counters_.clock_s);
    // Copies, which no store to a row can change: the loop keeps their values in registers.
    const SliceParameters first = slices_.front();
    const SliceParameters last = slices_.back();
    with_kind(first.kind, [&]<OptimizerKind kind>() {
        const auto step_first = [=](float* weights, float* state, float* gradient) {
            step_slice<kind>(first, weights, state, gradient, clock_s);
        };
        if (slices_.size() == 1) {
            return step_all(step_first);
        }
        with_kind(last.kind, [&]<OptimizerKind other>() {
            step_all([=](float* weights, float* state, float* gradient) {
                step_first(weights, state, gradient);
                step_slice<other>(last, weights, state, gradient, clock_s);
            });
        });
    });
    return sums_.rows.keys().size();
}

template <class StepRow>
void Table::step_all(StepRow step_row) {
    const auto rows = sums_.rows.keys();
    const std::uint32_t width = config_.width();
    const std::uint32_t n_floats = width + config_.n_state_behind();
    constexpr std::size_t ahead = 16;  // a large batch has pushed its first rows out of the cache
    for (std::size_t n = 0; n < rows.size(); ++n) {
        if (n + ahead < rows.size()) {
            prefetch(slabs_.lines(rows[n + ahead], n_floats));
            prefetch({&metadata_.record(rows[n + ahead]), sizeof(Metadata::Record)});
        }
        step_row(slabs_.at(rows[n]), state(rows[n]), sums_.values.data() + n * width);
        metadata_.set_version(rows[n], counters_.version);
    }
}

}  // namespace freshrank
