// A batch's way into a table: occurrences counted, rows read.
#include <algorithm>
#include <array>
#include <cstring>

#include "pipeline.hpp"
#include "table.hpp"

namespace freshrank {

void Table::touch(std::uint32_t row, std::uint32_t count, std::uint32_t now_s) {
    Metadata::Record& record = metadata_.record(row);
    record.frequency = add_saturating(
        decayed(record.frequency, record.last_seen_s, now_s, config_.limits.count_half_life_s),
        count);
    record.last_seen_s = std::max(record.last_seen_s, now_s);
    record.version_word |= changed_bit;
}

// Which share of the work counts an id's occurrences.
unsigned Table::owner_of(std::uint64_t id) const {
    return static_cast<unsigned>((id * 0x9e3779b97f4a7c15ULL >> 32) * workers_->n_shares() >> 32);
}

// Writes the row of every id, after counting occurrences of those that have one: counter() gives a
// function to ask, in order, for the count of entry i.
template <class Counter>
void Table::count(Ids ids, std::uint32_t now_s, std::uint32_t* rows, Counter&& counter) {
    const auto touch_known = [&](auto& count_of, std::size_t i) {
        if (rows[i] != no_row) {
            if (const std::uint32_t n = count_of(i); n != 0) {
                touch(rows[i], n, now_s);
            }
        }
    };
    if (workers_->n_shares() == 1) {
        auto count_of = counter();
        for_each_row(
            index_, ids, [&](std::uint32_t row) { return std::array{metadata_.lines(row)}; },
            [&](std::size_t i, std::uint32_t row) {
                rows[i] = row;
                touch_known(count_of, i);
            });
        return;
    }
    find_rows(ids, rows);
    workers_->run([&](unsigned share) {
        constexpr std::size_t ahead = 16;
        auto count_of = counter();
        for (std::size_t i = 0; i < ids.size() + ahead; ++i) {
            if (i < ids.size() && rows[i] != no_row && owner_of(ids[i]) == share) {
                prefetch(metadata_.lines(rows[i]));
            }
            if (i >= ahead && owner_of(ids[i - ahead]) == share) {
                touch_known(count_of, i - ahead);
            }
        }
    });
}

// Counts occurrences of ids without a row, in the batch's order, which decides who is born. An id
// that is born on the way has no_row in the entries before; `find_newborn` gives them the row.
template <class CountOf>
void Table::admit_absent(Ids ids, std::uint32_t now_s, std::uint32_t* rows, CountOf&& count_of) {
    absent_.clear();
    for (std::size_t i = 0; i < ids.size(); ++i) {
        if (rows[i] == no_row) {
            absent_.push_back(static_cast<std::uint32_t>(i));
        }
    }
    const std::uint64_t n_before = counters_.n_admitted;
    for (const std::uint32_t i : absent_) {
        const std::uint32_t n = count_of(i);
        if (n == 0) {
            continue;
        }
        if (counters_.n_admitted != n_before) {
            rows[i] = index_.find(ids[i]);  // born earlier in this batch?
        }
        if (rows[i] == no_row) {
            rows[i] = admit(ids[i], n, now_s);
        } else {
            touch(rows[i], n, now_s);
        }
    }
}

void Table::find_newborn(Ids ids, std::uint32_t* rows) const {
    for (std::size_t i = 0; i < ids.size(); ++i) {
        if (rows[i] == no_row) {
            rows[i] = index_.find(ids[i]);
        }
    }
}

void Table::find_rows(Ids ids, std::uint32_t* rows) const {
    workers_->run_ranges(ids.size(), [&](std::size_t first, std::size_t end) {
        for_each_row(index_, ids.subspan(first, end - first), fetch_nothing,
                     [&](std::size_t i, std::uint32_t row) { rows[first + i] = row; });
    });
}

void Table::lookup(Ids ids, float* out) const {
    const std::shared_lock lock(mutex_);
    const std::uint32_t width = config_.width();
    workers_->run_ranges(ids.size(), [&](std::size_t first, std::size_t end) {
        gather(index_, slabs_, ids.subspan(first, end - first), width, out + first * width);
    });
}

void Table::lookup_or_admit(Ids ids, std::span<const std::uint32_t> counts, std::uint32_t now_s,
                            float* out) {
    const std::lock_guard lock(mutex_);
    move_clock(now_s);
    make_room();
    keep(ids);
    const std::uint64_t n_before = counters_.n_admitted;
    looked_up_.ids.clear();  // until every row is known
    looked_up_.rows.resize(ids.size());
    std::uint32_t* rows = looked_up_.rows.data();
    const auto count_of = [=](std::size_t i) { return counts[i]; };
    if (workers_->n_shares() == 1) {
        read_and_count(ids, counts, now_s, rows, out);
    } else {
        read_and_count_shared(ids, counts, now_s, rows, out);
    }
    admit_absent(ids, now_s, rows, count_of);
    if (counters_.n_admitted != n_before) {
        find_newborn(ids, rows);
    }
    for (const std::uint32_t i : absent_) {
        copy_row(slabs_, rows[i], std::size_t{config_.width()}, out + i * config_.width());
    }
    looked_up_.ids.assign(ids.begin(), ids.end());
}

// One pass over index, metadata and weights.
void Table::read_and_count(Ids ids, std::span<const std::uint32_t> counts, std::uint32_t now_s,
                           std::uint32_t* rows, float* out) {
    const std::uint32_t width = config_.width();
    with_width(width, [&](auto n_floats) {
        for_each_row(
            index_, ids,
            [&](std::uint32_t row) {
                return std::array{metadata_.lines(row), slabs_.lines(row, width)};
            },
            [&](std::size_t i, std::uint32_t row) {
                rows[i] = row;
                copy_row(slabs_, row, n_floats, out + i * n_floats);
                if (row != no_row && counts[i] != 0) {
                    touch(row, counts[i], now_s);
                }
            });
    });
}

// Which share of the work changes a row: of a cache line of metadata one changes all. Nobody where
// there is none.
unsigned Table::owner_of_row(std::uint32_t row) const {
    const unsigned n_shares = workers_->n_shares();
    return row == no_row ? n_shares : row / Metadata::line_records % n_shares;
}

// Ranges of the batch read, then owners count.
void Table::read_and_count_shared(Ids ids, std::span<const std::uint32_t> counts,
                                  std::uint32_t now_s, std::uint32_t* rows, float* out) {
    const std::uint32_t width = config_.width();
    owned_.reset(ids.size(), workers_->n_shares());
    workers_->run_ranges(ids.size(), [&](std::size_t first, std::size_t end, unsigned share) {
        with_width(width, [&](auto n_floats) {
            owned_.tell(share, [&](auto tell) {
                for_each_row(
                    index_, ids.subspan(first, end - first),
                    [&](std::uint32_t row) { return std::array{slabs_.lines(row, width)}; },
                    [&](std::size_t k, std::uint32_t row) {
                        const std::size_t i = first + k;
                        rows[i] = row;
                        copy_row(slabs_, row, n_floats, out + i * n_floats);
                        tell(i, owner_of_row(row));
                    });
            });
        });
    });
    workers_->run([&](unsigned share) {
        owned_.each(share, [&](std::span<const std::uint32_t> entries) {
            constexpr std::size_t ahead = 16;
            for (std::size_t k = 0; k < entries.size(); ++k) {
                if (k + ahead < entries.size()) {
                    prefetch(metadata_.lines(rows[entries[k + ahead]]));
                }
                if (const std::uint32_t n = counts[entries[k]]; n != 0) {
                    touch(rows[entries[k]], n, now_s);
                }
            }
        });
    });
}

void Table::read(std::span<const Bags> bags, std::span<const std::uint64_t> requests,
                 std::uint32_t now_s, std::size_t n_slots, float* pooled) {
    const std::lock_guard lock(mutex_);
    move_clock(now_s);
    make_room();
    const std::uint64_t n_before = counters_.n_admitted;
    remember(bags, requests.size(), n_slots);
    occurrences_.resize(workers_->n_shares());
    for (auto& occurrences : occurrences_) {
        occurrences.reset(reading_.rows.size());
    }
    std::uint32_t* rows = reading_.rows.data();
    for (const Bags& own : bags) {
        const Ids ids = own.of.ids;
        keep(ids);
        const auto counter = [&] {
            // `bag` is the batch's row of the entry: entries come in order.
            return [&, bag = std::size_t{0}](std::size_t i) mutable -> std::uint32_t {
                while (own.of.end(bag) <= i) {
                    ++bag;
                }
                if (!own.is_counted[bag]) {
                    return 0;
                }
                // Keyed: nobody chooses ids that meet.
                const std::uint64_t hash = index_.hash(ids[i] ^ mix64(requests[bag]));
                auto& occurrences = occurrences_[owner_of(ids[i])];
                return occurrences.add({requests[bag], ids[i]}, hash) ? 1 : 0;
            };
        };
        count(ids, now_s, rows, counter);
        admit_absent(ids, now_s, rows, counter());
        rows += ids.size();
    }
    if (counters_.n_admitted != n_before) {
        rows = reading_.rows.data();
        for (const Bags& own : bags) {
            find_newborn(own.of.ids, rows);
            rows += own.of.ids.size();
        }
    }
    workers_->run_ranges(requests.size(), [&](std::size_t first, std::size_t end) {
        pool(bags, first, end, pooled);
    });
    reading_.is_open = true;
}

}  // namespace freshrank
