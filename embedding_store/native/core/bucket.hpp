// One cache line of keys and their row numbers.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "memory.hpp"

namespace freshrank {

inline constexpr std::uint32_t no_row = std::numeric_limits<std::uint32_t>::max();

struct alignas(line_bytes) Bucket {
    using Value = std::uint32_t;
    static constexpr unsigned n_slots = 5;
    // Load at most 0.72 = 3.6 of 5 slots: measured best between memory and second probes.
    static constexpr std::uint64_t load_times_ten = 36;
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

}  // namespace freshrank
