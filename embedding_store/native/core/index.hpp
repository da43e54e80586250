// The numbers of rows by key, and the bucket that holds five of them.
#pragma once

#include <bit>
#include <cstdint>

#include "bucket_map.hpp"

namespace freshrank {

struct alignas(line_bytes) Bucket {
    using Value = std::uint32_t;
    static constexpr unsigned n_slots = 5;
    // Load at most 0.8 = 4 of 5 slots: 16 bytes a key.
    static constexpr std::uint64_t load_times_ten = 40;
    static constexpr std::uint64_t growth_divisor = 2;
    // Homes that wait for their turn to grow get at most half a key more.
    static constexpr std::uint64_t homes_per_insert = 2;
    // At this value the counter stays for good: correct, only slower.
    static constexpr std::uint16_t overflow_stuck = 0xffff;

    std::uint64_t keys[n_slots];
    std::uint32_t rows[n_slots];
    std::uint16_t count;
    std::uint16_t overflow;

    // Bit i is set when slot i holds the key. No branches: mispredictions cost more than compares.
    unsigned match(std::uint64_t key) const {
        const auto bit = [&](unsigned i) { return static_cast<unsigned>(keys[i] == key) << i; };
        return (bit(0) | bit(1) | bit(2) | bit(3) | bit(4)) & used();
    }

    // One bit for every slot in use.
    unsigned used() const { return (1U << count) - 1U; }

    Value value(unsigned slot) const { return rows[slot]; }
    void put(unsigned slot, std::uint64_t key, Value row) {
        keys[slot] = key;
        rows[slot] = row;
    }

    struct Answer {
        std::uint32_t row;
        bool is_undecided;  // not here, but perhaps in a later bucket
    };
    // What a match means, free of branches again: when the index is full about one key in six lives
    // outside its home bucket, and a misprediction for each costs more than asking it once more.
    Answer answer(unsigned match_mask) const {
        const int slot = std::countr_zero(match_mask | 1U << (n_slots - 1));
        const bool is_absent = match_mask == 0;
        return {is_absent ? no_row : rows[slot],
                (static_cast<unsigned>(is_absent) & static_cast<unsigned>(overflow != 0)) != 0};
    }
};
static_assert(sizeof(Bucket) == line_bytes, "one probe must touch one cache line");

// Numbers of rows by key.
class Index : public BucketMap<Bucket> {
  public:
    using BucketMap<Bucket>::BucketMap;

    std::uint32_t find(std::uint64_t key, std::uint64_t hash) const {
        return value_or(key, hash, no_row);
    }
    std::uint32_t find(std::uint64_t key) const { return find(key, hash(key)); }
    // Returns the number the key had, or no_row.
    std::uint32_t erase(std::uint64_t key) { return erase_or(key, no_row); }
};

}  // namespace freshrank
