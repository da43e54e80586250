// What is known of a row besides its floats. The words that batches touch stand together in one
// record, four to a cache line, so that counting, summing and stamping a row cost one miss; what
// only birth, removal and files ask for stands in arrays beside them.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "memory.hpp"

namespace freshrank {

// Versions take 31 bits: the top bit of their word says that the row changed since a snapshot.
inline constexpr std::uint32_t max_version = 0x7fffffff;
inline constexpr std::uint32_t changed_bit = max_version + 1;

// Of counts, which stop at their end.
inline std::uint32_t add_saturating(std::uint32_t a, std::uint32_t b) {
    const std::uint32_t sum = a + b;
    return sum < a ? ~std::uint32_t{0} : sum;
}

class Metadata {
  public:
    explicit Metadata(Tally* tally) : tally_(tally) {}

    struct alignas(16) Record {
        std::uint32_t version_word;
        std::uint32_t last_seen_s;
        std::uint32_t frequency;  // occurrences counted, stops at 2^32 - 1
        float state;              // the optimizer's, where that is a single float

        // Of the last change; 0 = no row here.
        std::uint32_t version() const { return version_word & max_version; }
    };
    static constexpr std::uint32_t line_records = line_bytes / sizeof(Record);

    Record& record(std::uint32_t row) {
        return first_[row >> piece_bits][row & (piece_records - 1)];
    }
    const Record& record(std::uint32_t row) const {
        return first_[row >> piece_bits][row & (piece_records - 1)];
    }
    // Of rows from `row` on, `end` excluded: as many as stand together. Sweeps are scans of these.
    std::span<const Record> run(std::uint32_t row, std::uint32_t end) const {
        const std::uint32_t n_left = piece_records - (row & (piece_records - 1));
        return {&record(row), std::min(end - row, n_left)};
    }
    Lines lines(std::uint32_t row) const { return {&record(row), sizeof(Record)}; }
    std::uint32_t version(std::uint32_t row) const { return record(row).version(); }
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

    // May move records.
    void ensure(std::uint32_t row) {
        const std::uint64_t n_first = n_first_records(std::uint64_t{row} + 1);
        if (pieces_.empty() || pieces_.front().size() < n_first) {
            grow_first(n_first);
        }
        while (pieces_.size() <= row >> piece_bits) {
            first_.resize(pieces_.size() + 1);
            pieces_.emplace_back(piece_records, Fill::zeros, tally_);
            first_.back() = pieces_.back().data();
        }
        while (chunks_.size() <= row >> chunk_bits) {
            chunks_.emplace_back(1, Fill::zeros, tally_);
        }
    }
    // The most that n rows take, growth included.
    static std::uint64_t bytes_for(std::uint64_t n_rows) {
        const std::uint64_t n_pieces = (n_rows + piece_records - 1) >> piece_bits;
        const std::uint64_t n_first = n_first_records(n_rows);
        const std::uint64_t n_records =
            n_pieces > 1 ? n_pieces << piece_bits : n_first + n_first / 2;
        return n_records * sizeof(Record) +
               ((n_rows + chunk_rows - 1) >> chunk_bits) * sizeof(Chunk);
    }

  private:
    // Records stand in huge pages, for batches touch them at random. The first is a small array
    // that doubles until it fills one, so that small tables stay small.
    static constexpr std::uint32_t piece_records = huge_page_bytes / sizeof(Record);
    static constexpr std::uint32_t piece_bits = std::countr_zero(piece_records);

    static constexpr std::uint32_t chunk_bits = 12;
    static constexpr std::uint32_t chunk_rows = 1U << chunk_bits;
    struct alignas(line_bytes) Chunk {
        std::uint64_t key[chunk_rows];
        std::uint32_t born_s[chunk_rows];
    };

    static std::uint64_t n_first_records(std::uint64_t n_rows) {
        return std::clamp<std::uint64_t>(std::bit_ceil(n_rows), chunk_rows, piece_records);
    }
    void grow_first(std::uint64_t n_records) {
        AlignedArray<Record> grown(n_records, Fill::zeros, tally_);
        if (pieces_.empty()) {
            pieces_.emplace_back();
            first_.resize(1);
        }
        std::copy_n(pieces_.front().data(), pieces_.front().size(), grown.data());
        pieces_.front() = std::move(grown);
        first_.front() = pieces_.front().data();
    }
    static std::uint32_t at(std::uint32_t row) { return row & (chunk_rows - 1); }
    Chunk& of(std::uint32_t row) { return *chunks_[row >> chunk_bits].data(); }
    const Chunk& of(std::uint32_t row) const { return *chunks_[row >> chunk_bits].data(); }

    Tally* tally_;
    std::vector<AlignedArray<Record>> pieces_;
    std::vector<Record*> first_;  // record of every piece: all that finding one needs
    std::vector<AlignedArray<Chunk>> chunks_;
};

}  // namespace freshrank
