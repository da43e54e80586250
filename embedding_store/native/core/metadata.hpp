// What is known of a row besides its floats, as arrays in chunks: sweeps are linear scans.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.hpp"

namespace freshrank {

class Metadata {
  public:
    explicit Metadata(Tally* tally) : tally_(tally) {}

    static constexpr std::uint32_t chunk_bits = 12;
    static constexpr std::uint32_t chunk_rows = 1U << chunk_bits;
    struct Chunk {
        std::uint64_t key[chunk_rows];
        std::uint64_t version[chunk_rows];  // of the last change; 0 = no row here
        std::uint32_t last_seen_s[chunk_rows];
        std::uint32_t born_s[chunk_rows];
        std::uint32_t frequency[chunk_rows];  // occurrences counted, stops at 2^32 - 1
        bool is_changed[chunk_rows];
    };
    std::uint64_t& key(std::uint32_t row) { return of(row).key[at(row)]; }
    std::uint64_t key(std::uint32_t row) const { return of(row).key[at(row)]; }
    std::uint64_t& version(std::uint32_t row) { return of(row).version[at(row)]; }
    std::uint64_t version(std::uint32_t row) const { return of(row).version[at(row)]; }
    std::uint32_t& last_seen_s(std::uint32_t row) { return of(row).last_seen_s[at(row)]; }
    std::uint32_t last_seen_s(std::uint32_t row) const { return of(row).last_seen_s[at(row)]; }
    std::uint32_t& born_s(std::uint32_t row) { return of(row).born_s[at(row)]; }
    std::uint32_t born_s(std::uint32_t row) const { return of(row).born_s[at(row)]; }
    std::uint32_t& frequency(std::uint32_t row) { return of(row).frequency[at(row)]; }
    std::uint32_t frequency(std::uint32_t row) const { return of(row).frequency[at(row)]; }
    // Since a snapshot came by.
    bool is_changed(std::uint32_t row) const { return of(row).is_changed[at(row)]; }
    void mark_changed(std::uint32_t row) { of(row).is_changed[at(row)] = true; }
    void clear_changed(std::uint32_t row) { of(row).is_changed[at(row)] = false; }
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
