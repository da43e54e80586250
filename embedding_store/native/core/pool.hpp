// Numbered storage: numbers are handed out lowest first, freed ones are reused last-freed first.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "errors.hpp"
#include "index.hpp"
#include "memory.hpp"
#include "preimages.hpp"

namespace freshrank {

// Records in chunks, so that growing never moves or copies what is there.
template <class Record>
class Chunks {
  public:
    explicit Chunks(Tally* tally = nullptr) : tally_(tally) {}

    static constexpr std::uint32_t chunk_bits = 12;
    static constexpr std::uint32_t chunk_records = 1U << chunk_bits;

    Record& operator[](std::uint32_t n) {
        return chunks_[n >> chunk_bits].data()[n & (chunk_records - 1)];
    }
    const Record& operator[](std::uint32_t n) const {
        return chunks_[n >> chunk_bits].data()[n & (chunk_records - 1)];
    }
    void ensure(std::uint32_t n) {
        while (chunks_.size() <= n >> chunk_bits) {
            chunks_.emplace_back(chunk_records, Fill::zeros, tally_);
        }
    }
    std::uint64_t n_bytes() const { return bytes_for(chunks_.size() << chunk_bits); }
    static std::uint64_t bytes_for(std::uint64_t n) {
        return ((n + chunk_records - 1) >> chunk_bits) * chunk_records * sizeof(Record);
    }

  private:
    Tally* tally_;
    std::vector<AlignedArray<Record>> chunks_;
};

class Numbers {
  public:
    explicit Numbers(Tally* tally = nullptr) : free_(tally) {}

    // The number that take() gives, once what it needs is there: what fails changes nothing.
    std::uint32_t next() {
        if (n_free_ > 0) {
            if (is_watched_ && taken_.size() == taken_.capacity()) {
                taken_.reserve(2 * taken_.size() + 64);
            }
            return free_[n_free_ - 1];
        }
        require(high_water_ < no_row, "a table holds at most 2^32 - 1 rows");
        return high_water_;
    }
    void take() {
        if (n_free_ == 0) {
            ++high_water_;
            return;
        }
        if (n_free_ == n_same_) {
            if (is_watched_) {
                taken_.push_back(free_[n_free_ - 1]);
            }
            --n_same_;
        }
        --n_free_;
    }
    // Memory for a number that comes back; then give_back cannot fail.
    void prepare_give_back() { free_.ensure(n_free_); }
    void give_back(std::uint32_t number) { free_[n_free_++] = number; }

    // Numbers ever handed out: 0 .. high_water() - 1.
    std::uint32_t high_water() const { return high_water_; }
    std::uint64_t n_live() const { return high_water_ - n_free_; }
    std::uint32_t n_free() const { return n_free_; }
    // In the order they were freed: the last is the next to be taken.
    std::uint32_t free_at(std::uint32_t i) const { return free_[i]; }
    std::uint64_t n_bytes() const { return free_.n_bytes(); }
    static std::uint64_t bytes_for(std::uint64_t n) { return Chunks<std::uint32_t>::bytes_for(n); }
    // The first n_kept free numbers stay, these follow them.
    void assign(std::uint32_t high_water, std::uint32_t n_kept,
                std::span<const std::uint32_t> free) {
        high_water_ = high_water;
        n_free_ = n_kept;
        for (const std::uint32_t number : free) {
            prepare_give_back();
            give_back(number);
        }
    }

    // For snapshots. How many free numbers, from the first on, are those of the last mark().
    std::uint32_t n_same() const { return n_same_; }
    void mark() { n_same_ = n_free_; }
    // From a mark() until unwatch(), the free numbers of that instant stay known.
    void watch() { is_watched_ = true; }
    void unwatch() {
        is_watched_ = false;
        taken_ = {};
    }
    std::uint32_t watched_at(std::uint32_t i, std::uint32_t n_watched) const {
        return i < n_same_ ? free_[i] : taken_[n_watched - 1 - i];
    }
    std::uint64_t watched_bytes() const { return taken_.capacity() * sizeof(std::uint32_t); }

  private:
    std::uint32_t high_water_ = 0;
    std::uint32_t n_free_ = 0;
    std::uint32_t n_same_ = 0;
    bool is_watched_ = false;
    std::vector<std::uint32_t> taken_;  // since the mark, of those below it: from the last on
    Chunks<std::uint32_t> free_;
};

// key -> small record. Record has `key` and `is_free()`.
template <class Record>
class RecordMap {
  public:
    explicit RecordMap(std::uint64_t secret, Tally* tally = nullptr)
        : index_(secret, tally), numbers_(tally), records_(tally) {}

    // Growth then stops where n records have room.
    void limit(std::uint64_t n) { index_.limit(n); }
    static std::uint64_t bytes_for(std::uint64_t n) {
        return Index::bytes_for(n) + Chunks<Record>::bytes_for(n) + Numbers::bytes_for(n);
    }

    const Record* find(std::uint64_t key) const {
        const std::uint32_t n = index_.find(key);
        return n == no_row ? nullptr : &records_[n];
    }
    // The key must be absent. What fails, here and in erase, changes nothing.
    void insert(const Record& record) {
        const std::uint64_t hash = index_.hash(record.key);
        index_.prepare_insert(hash);
        const std::uint32_t n = numbers_.next();
        records_.ensure(n);
        keep(n);
        numbers_.take();
        index_.place(record.key, hash, n);
        records_[n] = record;
    }
    bool erase(std::uint64_t key) {
        const std::uint32_t n = index_.find(key);
        if (n == no_row) {
            return false;
        }
        keep(n);
        numbers_.prepare_give_back();
        index_.erase(key);
        records_[n] = Record{};
        numbers_.give_back(n);
        return true;
    }
    std::uint64_t size() const { return numbers_.n_live(); }
    std::uint64_t n_bytes() const {
        return index_.n_bytes() + records_.n_bytes() + numbers_.n_bytes();
    }

    // By number, for sweeps and snapshots.
    const Numbers& numbers() const { return numbers_; }
    const Record& at(std::uint32_t n) const { return records_[n]; }
    void watch(Preimages* kept) { kept_ = kept; }

  private:
    void keep(std::uint32_t n) {
        if (kept_ != nullptr) {
            kept_->keep(n, &records_[n]);
        }
    }

    Preimages* kept_ = nullptr;  // of a snapshot under way
    Index index_;
    Numbers numbers_;
    Chunks<Record> records_;
};

// Fixed-width rows of floats in 64-byte aligned slabs of about 2 MiB (one huge page).
class RowSlabs {
  public:
    explicit RowSlabs(std::uint32_t n_floats, Tally* tally = nullptr)
        : stride_(stride_of(n_floats)), tally_(tally) {
        const std::size_t rows = huge_page_bytes / (std::size_t{stride_} * sizeof(float));
        slab_bits_ = static_cast<std::uint32_t>(
            std::bit_width(std::clamp<std::size_t>(rows, 1, max_slab_rows)) - 1);
        mask_ = (1U << slab_bits_) - 1;
    }

    // What finds a row, for loops to keep in registers. As good as the slabs until they grow.
    struct View {
        float* const* slabs;
        std::uint32_t slab_bits, mask, stride;
        float* at(std::uint32_t row) const {
            return slabs[row >> slab_bits] + std::size_t{row & mask} * stride;
        }
    };
    View view() const { return {first_.data(), slab_bits_, mask_, stride_}; }

    float* at(std::uint32_t row) { return view().at(row); }
    const float* at(std::uint32_t row) const { return view().at(row); }
    Lines lines(std::uint32_t row, std::uint32_t n_floats) const {
        return {at(row), n_floats * sizeof(float)};
    }
    void ensure(std::uint32_t row) {
        while (slabs_.size() <= row >> slab_bits_) {
            // Not zeroed: a row is written in full when it is born.
            first_.resize(slabs_.size() + 1);  // first: what throws leaves no slab without one
            slabs_.emplace_back(std::size_t{stride_} << slab_bits_, Fill::nothing, tally_);
            first_.back() = slabs_.back().data();
        }
    }
    std::uint64_t capacity() const { return std::uint64_t{slabs_.size()} << slab_bits_; }
    std::uint64_t n_bytes() const { return capacity() * stride_ * sizeof(float); }
    std::uint32_t stride() const { return stride_; }
    std::uint32_t slab_rows() const { return 1U << slab_bits_; }

  private:
    static constexpr std::size_t max_slab_rows = 32768;  // small rows: keep small tables small

    // Whole lines, or a power of two below one line: no row straddles a line it need not touch.
    static std::uint32_t stride_of(std::uint32_t n_floats) {
        constexpr std::uint32_t line = line_bytes / sizeof(float);
        return n_floats < line ? std::bit_ceil(n_floats) : (n_floats + line - 1) / line * line;
    }

    std::uint32_t stride_;
    std::uint32_t slab_bits_ = 0;
    std::uint32_t mask_ = 0;
    Tally* tally_;
    std::vector<AlignedArray<float>> slabs_;
    std::vector<float*> first_;  // row of every slab: all that reading needs of one
};

}  // namespace freshrank
