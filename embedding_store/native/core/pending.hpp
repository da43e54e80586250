// Occurrences of ids that have no row yet: exact within a budget of bytes, estimated beyond it.
//
// An exact count takes one fifth of a cache line: key, count and time in 12 bytes, at a load of at
// most 0.9. What the budget leaves no room for goes to a count-min sketch with conservative update.
// Nothing here depends on where a key happens to lie: what is out of time reads as 0 at once, and
// whether there is room follows from counts by time, not from how far a sweep has come.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "hash.hpp"
#include "index.hpp"
#include "memory.hpp"
#include "sketch.hpp"

namespace freshrank {

struct alignas(line_bytes) PendingBucket {
    struct Value {
        std::uint32_t count = 0;
        std::uint32_t unit = 0;  // of time
    };
    static constexpr unsigned n_slots = 5;
    static constexpr std::uint64_t load_times_ten = 45;
    static constexpr std::uint64_t growth_divisor = 8;
    // Homes that wait for their turn to grow get at most a quarter key more.
    static constexpr std::uint64_t homes_per_insert = 4;
    static constexpr std::uint32_t overflow_stuck = 0xfff;

    std::uint64_t keys[n_slots];
    std::uint16_t counts[n_slots];
    std::uint16_t ages[n_slots];
    std::uint32_t base : 17;
    std::uint32_t overflow : 12;
    std::uint32_t count : 3;

    unsigned match(std::uint64_t key) const {
        const auto bit = [&](unsigned i) { return static_cast<unsigned>(keys[i] == key) << i; };
        return (bit(0) | bit(1) | bit(2) | bit(3) | bit(4)) & ((1U << count) - 1U);
    }
    Value value(unsigned slot) const { return {counts[slot], LineTimes::unit(base, ages[slot])}; }
    void put(unsigned slot, std::uint64_t key, Value value) {
        base = LineTimes::raise(base, value.unit, ages) & 0x1ffffU;
        keys[slot] = key;
        counts[slot] = static_cast<std::uint16_t>(value.count);
        ages[slot] = LineTimes::age(base, value.unit);
    }
};
static_assert(sizeof(PendingBucket) == line_bytes, "one probe must touch one cache line");

class PendingView;

class PendingCounts {
  public:
    struct Known {
        std::uint32_t count = 0;
        bool is_estimate = false;
        std::uint32_t seen_s = 0;  // of an exact count
    };
    struct Entry {
        std::uint64_t key = 0;
        std::uint32_t count = 0;
        std::uint32_t seen_s = 0;
    };

    PendingCounts(PendingRules rules, SipKey key, Tally* tally);

    // Keeps everything within that many bytes; called again only with more.
    void limit(std::uint64_t max_bytes);

    // Time has come: what is older than the rules look back no longer takes room.
    void advance(std::uint64_t clock_s);
    void change_rules(PendingRules rules);

    Known find(std::uint64_t id, std::uint32_t now_s) const;
    // To what was just found of an id that `threshold` occurrences bring to life.
    void add(std::uint64_t id, Known known, std::uint32_t count, std::uint32_t now_s,
             std::uint32_t threshold);
    void erase(std::uint64_t id);
    void sweep(std::uint64_t n_entries);

    std::uint64_t size() const { return n_counted_; }
    std::uint64_t max_size() const { return max_entries_; }

    // For snapshots: what stays informed of changes; and back, false where the entry cannot be.
    void watch(PendingView* view) { view_ = view; }
    bool restore(const Entry& entry);
    Sketch& sketch() { return sketch_; }
    const Sketch& sketch() const { return sketch_; }
    // visit(key) for every one held.
    template <class Visit>
    void each_key(Visit&& visit) const {
        map_.buckets().each([&](const PendingBucket& bucket) {
            for (unsigned slot = 0; slot < bucket.count; ++slot) {
                visit(bucket.keys[slot]);
            }
        });
    }
    bool restore_sketch(std::span<const Sketch::Line> lines, std::uint64_t n_counted);

  private:
    // Counts by time, so that those out of time are known without looking for them. From the
    // first that counts to the clock's there are never more than n_bins.
    static constexpr std::uint32_t n_bins = 128;
    static constexpr std::uint64_t sweep_slice = 4096;
    std::uint64_t bin_of(std::uint64_t time_s) const {
        return time_s / (rules_.ttl_s / 64 + rules_.unit_s);
    }
    bool is_counted(std::uint32_t seen_s) const {
        return rules_.ttl_s == 0 || bin_of(seen_s) >= first_bin_;
    }
    void count_in(std::uint32_t seen_s);
    void count_out(std::uint32_t seen_s);
    bool make_room(std::uint64_t id);
    void sweep(PendingBucket& bucket);
    void keep(std::uint64_t id, PendingBucket::Value value);

    friend class PendingView;
    PendingView* view_ = nullptr;  // of a snapshot under way
    PendingRules rules_;
    Tally* tally_;
    BucketMap<PendingBucket> map_;
    Sketch sketch_;
    std::uint64_t clock_s_ = 0;
    std::uint64_t max_bytes_ = 0;
    std::uint64_t max_entries_ = ~std::uint64_t{0};
    std::uint64_t n_held_ = 0;     // in the map
    std::uint64_t n_counted_ = 0;  // of them not out of time
    std::uint64_t first_bin_ = 0;
    std::array<std::uint32_t, n_bins> bins_{};
    std::uint64_t sweep_cursor_ = 0;
};

}  // namespace freshrank
