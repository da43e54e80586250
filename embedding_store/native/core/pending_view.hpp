// Pending counts as they were at one instant, gathered in parts while they change.
#pragma once

#include <cstdint>
#include <vector>

#include "pending.hpp"
#include "pool.hpp"

namespace freshrank {

// Parts are ranges of the keys' hash, which no growth of the map moves a key out of.
class PendingView {
  public:
    using Entry = PendingCounts::Entry;

    // As `counts` are now; they must tell it of changes from now on, by PendingCounts::watch.
    explicit PendingView(PendingCounts& counts);

    // Before an id's count changes; a value of count 0 where it has none.
    void keep(std::uint64_t id, PendingBucket::Value value);

    // One part, or some of what was kept; false when nothing is left.
    bool gather();
    void gather_all() {
        while (gather()) {
        }
    }
    // In no order.
    std::vector<Entry>& entries() { return entries_; }
    std::uint64_t n_bytes() const { return kept_.n_bytes() + entries_.capacity() * sizeof(Entry); }

  private:
    struct Kept {
        std::uint64_t key = 0;
        std::uint32_t count = 0;  // 0: there was none
        std::uint32_t seen_s = 0;
    };
    static constexpr unsigned part_bits = 10;  // a part of 10 million takes 0.1 ms
    static constexpr unsigned n_parts = 1U << part_bits;
    static constexpr std::uint32_t slice = 1U << 14;  // of what was kept, 0.1 ms as well
    // From now on nothing that changes matters.
    bool is_gathered() const { return part_ == n_parts; }
    bool gather_kept();
    static unsigned part_of(std::uint64_t hash) {
        return static_cast<unsigned>(hash >> (64 - part_bits));
    }
    bool was_counted(std::uint32_t seen_s) const {
        return counts_.rules_.ttl_s == 0 || counts_.bin_of(seen_s) >= first_bin_;
    }

    PendingCounts& counts_;
    std::uint64_t clock_s_;
    std::uint64_t first_bin_;
    unsigned part_ = 0;  // the next
    RecordMap<Kept> kept_;
    std::uint32_t next_kept_ = 0;
    std::vector<Entry> entries_;
};

}  // namespace freshrank
