#include "pending.hpp"

#include <algorithm>

#include "pending_view.hpp"

namespace freshrank {

PendingCounts::PendingCounts(PendingRules rules, SipKey key, Tally* tally)
    : rules_(rules), tally_(tally), map_(random_secret(), tally), sketch_(key) {}

void PendingCounts::limit(std::uint64_t max_bytes) {
    max_bytes_ = max_bytes;
    const std::uint64_t exact_bytes = max_bytes - max_bytes / 4;
    std::uint64_t fits = 0;
    // No more than a map can ever hold.
    for (std::uint64_t step = std::min(exact_bytes / sizeof(std::uint64_t), std::uint64_t{1} << 32);
         step > 0; step /= 2) {
        if (decltype(map_)::bytes_for(fits + step) <= exact_bytes) {
            fits += step;
        }
    }
    max_entries_ = fits;
    map_.limit(fits);
}

void PendingCounts::advance(std::uint64_t clock_s) {
    const std::uint64_t step_s = std::uint64_t{rules_.unit_s} * LineTimes::step;
    if (view_ != nullptr && clock_s / step_s != clock_s_ / step_s) {
        view_->gather_all();  // times that it still tells apart may now be lifted
    }
    clock_s_ = clock_s;
    if (rules_.ttl_s == 0 || clock_s <= rules_.ttl_s) {
        return;
    }
    const std::uint64_t first = bin_of(clock_s - rules_.ttl_s);
    if (first > first_bin_ + n_bins) {
        bins_.fill(0);
        n_counted_ = 0;
        first_bin_ = first;
    }
    for (; first_bin_ < first; ++first_bin_) {
        std::uint32_t& bin = bins_[first_bin_ % n_bins];
        n_counted_ -= bin;
        bin = 0;
    }
}

void PendingCounts::count_in(std::uint32_t seen_s) {
    ++n_counted_;
    ++bins_[bin_of(seen_s) % n_bins];
}

void PendingCounts::count_out(std::uint32_t seen_s) {
    if (is_counted(seen_s)) {
        --n_counted_;
        --bins_[bin_of(seen_s) % n_bins];
    }
}

PendingCounts::Known PendingCounts::find(std::uint64_t id, std::uint32_t now_s) const {
    const auto value = map_.value_or(id, map_.hash(id), {});
    const std::uint32_t seen_s = rules_.seen_s(value.unit, clock_s_);
    if (value.count != 0 && is_counted(seen_s)) {
        return rules_.is_stale(seen_s, clock_s_)
                   ? Known{}
                   : Known{rules_.decayed(value.count, seen_s, now_s), false, seen_s};
    }
    if (n_counted_ < max_entries_) {
        return {};
    }
    return {sketch_.estimate(id, rules_, now_s, clock_s_), true};
}

void PendingCounts::add(std::uint64_t id, Known known, std::uint32_t count, std::uint32_t now_s,
                        std::uint32_t threshold) {
    const auto [bucket, slot] = map_.locate(id);
    if (bucket != nullptr) {
        auto value = bucket->value(slot);
        keep(id, value);
        const std::uint32_t seen_s = rules_.seen_s(value.unit, clock_s_);
        if (is_counted(seen_s)) {
            count_out(seen_s);
            value.unit = std::max(value.unit, rules_.unit(now_s));
            value.count = static_cast<std::uint32_t>(
                std::min<std::uint64_t>(std::uint64_t{known.count} + count, max_pending_count));
            if (value.count == 0) {
                map_.erase_or(id, {});
                --n_held_;
                return;
            }
            bucket->put(slot, id, value);
            count_in(rules_.latest_s(value.unit));
            return;
        }
        map_.erase_or(id, {});  // out of time, and no sweep has come by
        --n_held_;
    }
    if (count == 0 || rules_.is_stale(now_s, clock_s_)) {
        return;
    }
    count = std::min(count, max_pending_count);
    if (make_room(id)) {
        keep(id, {});
        map_.insert(id, {count, rules_.unit(now_s)});
        ++n_held_;
        count_in(rules_.latest_s(rules_.unit(now_s)));
    } else {
        sketch_.allocate(Sketch::lines_for(max_bytes_ / 4), tally_);
        sketch_.add(id, count, threshold, rules_, now_s, clock_s_);
    }
}

bool PendingCounts::make_room(std::uint64_t id) {
    if (n_counted_ >= max_entries_) {
        return false;
    }
    while (n_held_ >= max_entries_) {
        sweep(sweep_slice);
    }
    // A sweep clears the map from one end: where it has not come by, what is out of time and what
    // came since would together overfill buckets, while the map as a whole has room.
    if (n_held_ > n_counted_) {
        map_.each_full(map_.hash(id), [&](PendingBucket& bucket) { sweep(bucket); });
    }
    return true;
}

void PendingCounts::erase(std::uint64_t id) {
    const auto value = map_.erase_or(id, {});
    if (value.count != 0) {
        keep(id, value);
        --n_held_;
        count_out(rules_.seen_s(value.unit, clock_s_));
    }
}

// From the last slot down: erasing one moves only the last into its place.
void PendingCounts::sweep(PendingBucket& bucket) {
    for (unsigned slot = bucket.count; slot-- > 0;) {
        if (!is_counted(rules_.seen_s(bucket.value(slot).unit, clock_s_))) {
            keep(bucket.keys[slot], bucket.value(slot));
            map_.erase_or(bucket.keys[slot], {});
            --n_held_;
        }
    }
}

void PendingCounts::sweep(std::uint64_t n_entries) {
    if (n_held_ == n_counted_) {
        return;
    }
    sweep_cursor_ = map_.buckets().each_from(sweep_cursor_, n_entries / PendingBucket::n_slots + 1,
                                             [&](PendingBucket& bucket) { sweep(bucket); });
}

void PendingCounts::change_rules(PendingRules rules) {
    if (rules.ttl_s == rules_.ttl_s && rules.half_life_s == rules_.half_life_s) {
        return;
    }
    if (view_ != nullptr) {
        view_->gather_all();  // it cannot read the new units
    }
    sweep(~std::uint64_t{0});
    const PendingRules old = rules_;
    rules_ = rules;
    bins_.fill(0);
    n_counted_ = 0;
    first_bin_ = 0;
    advance(clock_s_);
    map_.buckets().each([&](PendingBucket& bucket) {
        std::array<PendingBucket::Value, PendingBucket::n_slots> values;
        for (unsigned slot = 0; slot < bucket.count; ++slot) {
            values[slot] = bucket.value(slot);
        }
        bucket.base = 0;
        for (unsigned slot = 0; slot < bucket.count; ++slot) {
            // The latest second of a long unit may lie ahead of the clock.
            const std::uint64_t seen_s = old.seen_s(values[slot].unit, clock_s_);
            const auto unit = rules_.unit(static_cast<std::uint32_t>(std::min(seen_s, clock_s_)));
            bucket.put(slot, bucket.keys[slot], {values[slot].count, unit});
            if (is_counted(rules_.latest_s(unit))) {
                count_in(rules_.latest_s(unit));
            }
        }
    });
    sketch_.change_rules(old, rules);
}

// Before an id's count changes; a value of count 0 where it has none.
void PendingCounts::keep(std::uint64_t id, PendingBucket::Value value) {
    if (view_ != nullptr) {
        view_->keep(id, value);
    }
}

bool PendingCounts::restore(const Entry& entry) {
    const std::uint32_t unit = rules_.unit(entry.seen_s);
    const std::uint64_t hash = map_.hash(entry.key);
    if (entry.count == 0 || entry.count > max_pending_count ||
        unit > rules_.unit(static_cast<std::uint32_t>(clock_s_)) ||
        !is_counted(rules_.latest_s(unit)) || map_.value_or(entry.key, hash, {}).count != 0 ||
        n_counted_ >= max_entries_) {
        return false;
    }
    map_.insert(entry.key, {entry.count, unit});
    ++n_held_;
    count_in(rules_.latest_s(unit));
    return true;
}

bool PendingCounts::restore_sketch(std::span<const Sketch::Line> lines, std::uint64_t n_counted) {
    if (lines.empty() || max_bytes_ == 0) {
        return true;  // without a limit nothing is ever estimated
    }
    const bool is_in_time = std::all_of(lines.begin(), lines.end(), [&](const auto& line) {
        return line.n_halvings == 0 &&
               std::uint64_t{line.base} * LineTimes::step <= clock_s_ / rules_.unit_s;
    });
    if (!is_in_time || n_counted / max_pending_count > lines.size() ||
        lines.size() % Sketch::n_rows != 0 || lines.size() > Sketch::lines_for(max_bytes_ / 4)) {
        return false;
    }
    sketch_.allocate(lines.size(), tally_);
    sketch_.assign(lines, n_counted);
    return true;
}

}  // namespace freshrank
