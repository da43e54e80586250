// What is known of a row besides its floats. The words that batches touch stand together in one
// record, four to a cache line, so that counting, summing and stamping a row cost one miss; what
// only birth, removal and files ask for stands in arrays beside them.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.hpp"

namespace freshrank {

// Versions take 31 bits: the top bit of their word says that the row changed since a snapshot.
inline constexpr std::uint32_t max_version = 0x7fffffff;
inline constexpr std::uint32_t changed_bit = max_version + 1;

class Metadata {
  public:
    explicit Metadata(Tally* tally) : tally_(tally) {}

    struct alignas(16) Record {
        std::uint32_t version_word;
        std::uint32_t last_seen_s;
        std::uint32_t frequency;  // occurrences counted, stops at 2^32 - 1
        float state;              // the optimizer's, where that is a single float
    };
    static constexpr std::uint32_t chunk_bits = 12;
    static constexpr std::uint32_t chunk_rows = 1U << chunk_bits;
    struct alignas(line_bytes) Chunk {
        Record record[chunk_rows];
        std::uint64_t key[chunk_rows];
        std::uint32_t born_s[chunk_rows];
    };

    Record& record(std::uint32_t row) { return of(row).record[at(row)]; }
    const Record& record(std::uint32_t row) const { return of(row).record[at(row)]; }
    // Of the last change; 0 = no row here.
    std::uint32_t version(std::uint32_t row) const {
        return record(row).version_word & max_version;
    }
    void set_version(std::uint32_t row, std::uint64_t version) {
        record(row).version_word = static_cast<std::uint32_t>(version) | changed_bit;
    }
    bool is_changed(std::uint32_t row) const {
        return (record(row).version_word & changed_bit) != 0;
    }
    void clear_changed(std::uint32_t row) { record(row).version_word &= max_version; }
    std::uint32_t& last_seen_s(std::uint32_t row) { return record(row).last_seen_s; }
    std::uint32_t last_seen_s(std::uint32_t row) const { return record(row).last_seen_s; }
    std::uint32_t& frequency(std::uint32_t row) { return record(row).frequency; }
    std::uint32_t frequency(std::uint32_t row) const { return record(row).frequency; }
    float& state(std::uint32_t row) { return record(row).state; }
    const float& state(std::uint32_t row) const { return record(row).state; }
    std::uint64_t& key(std::uint32_t row) { return of(row).key[at(row)]; }
    std::uint64_t key(std::uint32_t row) const { return of(row).key[at(row)]; }
    std::uint32_t& born_s(std::uint32_t row) { return of(row).born_s[at(row)]; }
    std::uint32_t born_s(std::uint32_t row) const { return of(row).born_s[at(row)]; }

    // The next tenant inherits nothing.
    void clear(std::uint32_t row) {
        record(row) = {};
        key(row) = 0;
        born_s(row) = 0;
    }
    void ensure(std::uint32_t row) {
        while (chunks_.size() <= row >> chunk_bits) {
            chunks_.emplace_back(1, Fill::zeros, tally_);
        }
    }
    static std::uint64_t bytes_for(std::uint64_t n_rows) {
        return ((n_rows + chunk_rows - 1) >> chunk_bits) * sizeof(Chunk);
    }

  private:
    static std::uint32_t at(std::uint32_t row) { return row & (chunk_rows - 1); }
    Chunk& of(std::uint32_t row) { return *chunks_[row >> chunk_bits].data(); }
    const Chunk& of(std::uint32_t row) const { return *chunks_[row >> chunk_bits].data(); }
    Tally* tally_;
    std::vector<AlignedArray<Chunk>> chunks_;
};

}  // namespace freshrank
