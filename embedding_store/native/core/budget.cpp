// How a table stays within its budget: it tightens admission, then evicts the least valuable.
#include "budget.hpp"

#include <algorithm>
#include <string>
#include <tuple>

#include "table.hpp"

namespace freshrank {

Room::Room(const Limits& limits, const RowSlabs& slabs, std::shared_ptr<Budget> budget)
    : limits_(limits),
      slab_rows_(slabs.slab_rows()),
      slab_bytes_(std::uint64_t{slabs.slab_rows()} * slabs.stride() * sizeof(float)),
      budget_(std::move(budget)) {
    if (!is_limited()) {
        return;
    }
    std::string left;
    if (limits_.max_bytes != 0) {
        left += "; max_bytes is " + std::to_string(limits_.max_bytes);
    }
    if (budget_ != nullptr) {
        left += "; the budget has " + std::to_string(budget_->left_bytes()) + " left";
    }
    require(extend_by(1), "the smallest table of these rows takes " + std::to_string(bytes_for(1)) +
                              " bytes" + left);
    if (budget_ == nullptr) {
        for (std::uint64_t n = limits_.max_bytes / slab_bytes_ + 1; n > 0; n /= 2) {
            while (extend_by(n)) {
            }
        }
    }
}

Room::~Room() {
    if (budget_ != nullptr && n_slabs_ > 0) {
        budget_->give_back(bytes_for(n_slabs_));
    }
}

bool Room::extend_by(std::uint64_t n_slabs) {
    const std::uint64_t wanted = n_slabs_ + n_slabs;
    if (wanted > no_row / slab_rows_ ||
        (limits_.max_bytes != 0 && bytes_for(wanted) > limits_.max_bytes)) {
        return false;
    }
    const std::uint64_t held = n_slabs_ == 0 ? 0 : bytes_for(n_slabs_);
    if (budget_ != nullptr && !budget_->take(bytes_for(wanted) - held)) {
        return false;
    }
    n_slabs_ = wanted;
    return true;
}

bool Room::extend() {
    is_spent_ = is_spent_ || budget_ == nullptr ||
                !(extend_by(std::max<std::uint64_t>(n_slabs_ / 4, 1)) || extend_by(1));
    return !is_spent_;
}

std::uint64_t Room::rows() const {
    return is_limited() ? n_slabs_ * slab_rows_ : no_row;
}

std::uint64_t Room::tombstones() const {
    return is_limited() ? tombstones_of(n_slabs_) : ~std::uint64_t{0} >> 1;
}

std::uint64_t Room::pending_bytes() const {
    return is_limited() ? pending_bytes_of(n_slabs_) : limits_.pending_bytes;
}

std::uint64_t Room::rows_bytes(std::uint64_t n_slabs) const {
    const std::uint64_t n_rows = n_slabs * slab_rows_;
    return n_slabs * slab_bytes_ + Index::bytes_for(n_rows) + Metadata::bytes_for(n_rows) +
           Numbers::bytes_for(n_rows);
}

std::uint64_t Room::tombstones_of(std::uint64_t n_slabs) const {
    return std::max<std::uint64_t>(n_slabs * slab_rows_ / 4, 1024);
}

std::uint64_t Room::pending_bytes_of(std::uint64_t n_slabs) const {
    return limits_.pending_bytes != 0 ? limits_.pending_bytes
                                      : std::max(rows_bytes(n_slabs) / 8, min_pending_bytes);
}

std::uint64_t Room::bytes_for(std::uint64_t n_slabs) const {
    return rows_bytes(n_slabs) + Table::tombstone_bytes_for(tombstones_of(n_slabs)) +
           pending_bytes_of(n_slabs);
}

void Table::move_clock(std::uint32_t now_s) {
    counters_.clock_s = std::max<std::uint64_t>(counters_.clock_s, now_s);
    pending_.advance(counters_.clock_s);
}

bool Table::extend_room() {
    const bool is_extended = room_.extend();
    if (is_extended) {
        fit_to_room();
    }
    return is_extended;
}

void Table::fit_to_room() {
    if (room_.is_limited()) {
        index_.limit(room_.rows());
        tombstones_.limit(room_.tombstones());
    }
    if (room_.pending_bytes() != 0) {
        pending_.limit(room_.pending_bytes());
    }
}

// Occurrences that bring an id to life now.
std::uint32_t Table::threshold_or_more_room() {
    while (tightening() > 0 && extend_room()) {
    }
    return threshold();
}

// The threshold doubles at 1/8, 1/16, 1/32 and 1/64 of the room left.
unsigned Table::tightening() const {
    if (!room_.is_limited()) {
        return 0;
    }
    const std::uint64_t n_left = room_.rows() - numbers_.n_live();
    unsigned n_doublings = 0;
    while (n_doublings < 4 && n_left << (n_doublings + 3) < room_.rows()) {
        ++n_doublings;
    }
    return n_doublings;
}

std::uint32_t Table::threshold() const {
    return std::min(config_.min_count << tightening(), max_min_count);
}

// Before a call counts anything: rows must not leave while a batch holds their numbers.
void Table::make_room() {
    if (!room_.is_limited()) {
        return;
    }
    room_.try_again();
    constexpr std::uint64_t most = 4096;  // of one call, at about 0.1 us each
    const std::uint64_t n_wanted = std::min(counters_.n_wanted, most);
    const std::uint64_t n_left = room_.rows() - numbers_.n_live();
    counters_.n_wanted = 0;
    if (n_wanted > n_left) {
        evict(n_wanted - n_left);
    }
}

// Each the least valuable of the next 64: lowest frequency, halved by age, then oldest last seen.
void Table::evict(std::uint64_t n_rows) {
    constexpr unsigned window = 64;
    n_rows = std::min<std::uint64_t>(n_rows, numbers_.n_live());
    for (; n_rows > 0 && tombstones_.size() < room_.tombstones(); --n_rows) {
        std::tuple<std::uint32_t, std::uint32_t, std::uint64_t> least;
        bool is_any = false;
        for (unsigned i = 0; i < window; ++i) {
            const std::uint32_t row = counters_.evict_cursor;
            counters_.evict_cursor = row + 1 >= numbers_.high_water() ? 0 : row + 1;
            if (metadata_.version(row) == 0) {
                continue;
            }
            const std::uint32_t seen_s = metadata_.last_seen_s(row);
            const std::tuple one{decayed(metadata_.frequency(row), seen_s, counters_.clock_s,
                                         config_.limits.count_half_life_s),
                                 seen_s, metadata_.key(row)};
            least = is_any ? std::min(least, one) : one;
            is_any = true;
        }
        if (is_any) {
            remove_row(std::get<2>(least));
            ++counters_.n_evicted;
        }
    }
}

}  // namespace freshrank
