// What is remembered of a key: a decayed sum, the last time, or the first time. Times are
// milliseconds. Updates commute; a read sees what happened strictly before it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "map.hpp"

namespace freshrank::live {

inline constexpr double nothing = std::numeric_limits<double>::quiet_NaN();
inline constexpr double never = -std::numeric_limits<double>::infinity();

// The meaning of x and y depends on the rule.
struct Entry {
    static constexpr std::int64_t empty = std::numeric_limits<std::int64_t>::min();
    std::int64_t time = empty;
    double x = 0;
    double y = 0;

    bool is_empty() const { return time == empty; }
};

// Number of events, halved every `span` ms: x before `time`, y at `time`, as of `time`.
struct DecayedSum {
    static constexpr double absent = 0;
    // 2^-40 of a million millions is one.
    static constexpr double n_half_lives = 40;

    double span;

    double decay(double age) const {
        return age > n_half_lives * span ? 0 : std::exp2(-age / span);
    }
    void add(Entry& entry, std::int64_t ts) const {
        if (entry.is_empty()) {
            entry = {ts, 0, 1};
        } else if (ts > entry.time) {
            entry = {ts, (entry.x + entry.y) * decay(between(entry.time, ts)), 1};
        } else if (ts == entry.time) {
            entry.y += 1;
        } else {
            entry.x += decay(between(ts, entry.time));
        }
    }
    // A read earlier than `time` cannot tell when x came together: it takes all of it.
    double read(const Entry& entry, std::int64_t ts) const {
        return ts > entry.time ? (entry.x + entry.y) * decay(between(entry.time, ts)) : entry.x;
    }
    bool is_stale(const Entry& entry, std::int64_t now) const {
        return between(entry.time, now) > n_half_lives * span;
    }
    static double between(std::int64_t from, std::int64_t to) {
        return static_cast<double>(to) - static_cast<double>(from);
    }
};

// Seconds since the last event, unless it is longer ago than `span` ms. `time` is the last event
// and x the last before that at another time: what a read at `time` sees.
struct SinceLast {
    static constexpr double absent = nothing;

    double span;

    void add(Entry& entry, std::int64_t ts) const {
        const auto at = static_cast<double>(ts);
        if (entry.is_empty()) {
            entry = {ts, never, 0};
        } else if (ts > entry.time) {
            entry = {ts, static_cast<double>(entry.time), 0};
        } else if (ts < entry.time && at > entry.x) {
            entry.x = at;
        }
    }
    double read(const Entry& entry, std::int64_t ts) const {
        const auto at = static_cast<double>(ts);
        const double last = ts > entry.time ? static_cast<double>(entry.time) : entry.x;
        return last < at && at - last <= span ? (at - last) / 1000 : nothing;
    }
    bool is_stale(const Entry& entry, std::int64_t now) const {
        return DecayedSum::between(entry.time, now) > span;
    }
};

// Seconds since the first event; it is forgotten when there was none for `span` ms. `time` is the
// last event, x the first.
struct SinceFirst {
    static constexpr double absent = nothing;

    double span;

    void add(Entry& entry, std::int64_t ts) const {
        const auto at = static_cast<double>(ts);
        if (entry.is_empty() || DecayedSum::between(entry.time, ts) > span) {
            entry = {ts, at, 0};
            return;
        }
        if (at < entry.x && entry.x - at <= span) {
            entry.x = at;
        }
        entry.time = ts > entry.time ? ts : entry.time;
    }
    double read(const Entry& entry, std::int64_t ts) const {
        const auto at = static_cast<double>(ts);
        const bool is_known = entry.x < at && DecayedSum::between(entry.time, ts) <= span;
        return is_known ? (at - entry.x) / 1000 : nothing;
    }
    bool is_stale(const Entry& entry, std::int64_t now) const {
        return DecayedSum::between(entry.time, now) > span;
    }
};

// Keys with what one rule remembers of them. Safe for threads.
class Series {
  public:
    virtual ~Series() = default;
    virtual void add(const std::uint64_t* keys, const std::int64_t* ts, std::size_t n) = 0;
    virtual void read(const std::uint64_t* keys, const std::int64_t* ts, std::size_t n,
                      double* values) const = 0;
    // Per request: reads all its rows, then adds those that `acted` names (all if it is null).
    virtual void read_then_add(const std::int64_t* offsets, std::size_t n_requests,
                               const std::uint64_t* keys, const std::int64_t* ts, const bool* acted,
                               double* values) = 0;
    virtual std::size_t size() const = 0;
    virtual std::vector<Map<Entry>::Slot> entries() const = 0;
    virtual void restore(const std::uint64_t* keys, const Entry* entries, std::size_t n) = 0;
};

template <class Rule>
class SeriesOf final : public Series {
  public:
    explicit SeriesOf(double span) : rule_{span} {}

    void add(const std::uint64_t* keys, const std::int64_t* ts, std::size_t n) override {
        const std::lock_guard lock(mutex_);
        for (std::size_t i = 0; i < n; ++i) {
            prefetch(keys, i + Map<Entry>::n_ahead, n);
            add_one(keys[i], ts[i]);
        }
        sweep(n);
    }

    void read(const std::uint64_t* keys, const std::int64_t* ts, std::size_t n,
              double* values) const override {
        const std::lock_guard lock(mutex_);
        for (std::size_t i = 0; i < n; ++i) {
            prefetch(keys, i + Map<Entry>::n_ahead, n);
            values[i] = read_one(keys[i], ts[i]);
        }
    }

    void read_then_add(const std::int64_t* offsets, std::size_t n_requests,
                       const std::uint64_t* keys, const std::int64_t* ts, const bool* acted,
                       double* values) override {
        const std::lock_guard lock(mutex_);
        const auto n = static_cast<std::size_t>(offsets[n_requests]);
        for (std::size_t r = 0; r < n_requests; ++r) {
            const auto begin = static_cast<std::size_t>(offsets[r]);
            const auto end = static_cast<std::size_t>(offsets[r + 1]);
            for (std::size_t i = begin; i < end; ++i) {
                prefetch(keys, i + Map<Entry>::n_ahead, n);
                values[i] = read_one(keys[i], ts[r]);
            }
            for (std::size_t i = begin; i < end; ++i) {
                if (acted == nullptr || acted[i]) {
                    add_one(keys[i], ts[r]);
                }
            }
        }
        sweep(n);
    }

    std::size_t size() const override {
        const std::lock_guard lock(mutex_);
        return map_.size();
    }

    std::vector<Map<Entry>::Slot> entries() const override {
        const std::lock_guard lock(mutex_);
        std::vector<Map<Entry>::Slot> out;
        out.reserve(map_.size());
        map_.for_each([&](std::uint64_t key, const Entry& entry) { out.push_back({key, entry}); });
        return out;
    }

    void restore(const std::uint64_t* keys, const Entry* entries, std::size_t n) override {
        const std::lock_guard lock(mutex_);
        for (std::size_t i = 0; i < n; ++i) {
            if (!entries[i].is_empty()) {
                map_.at(keys[i]) = entries[i];
            }
        }
    }

  private:
    void prefetch(const std::uint64_t* keys, std::size_t i, std::size_t n) const {
        if (i < n) {
            map_.prefetch(keys[i]);
        }
    }

    double read_one(std::uint64_t key, std::int64_t ts) const {
        const Entry* entry = map_.find(key);
        return entry == nullptr ? Rule::absent : rule_.read(*entry, ts);
    }

    void add_one(std::uint64_t key, std::int64_t ts) {
        rule_.add(map_.at(key), ts);
        now_ = ts > now_ ? ts : now_;
    }

    // Four looks per update: a round trip takes a third as many updates as there are slots, so that
    // new keys alone never fill the map to where it grows.
    void sweep(std::size_t n) {
        map_.sweep(4 * n, [&](const Entry& entry) { return rule_.is_stale(entry, now_); });
    }

    mutable std::mutex mutex_;
    Rule rule_;
    Map<Entry> map_;
    std::int64_t now_ = Entry::empty + 1;  // the newest update
};

}  // namespace freshrank::live
