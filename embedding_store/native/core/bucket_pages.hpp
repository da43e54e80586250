// Memory of buckets that grows without moving them.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "memory.hpp"

namespace freshrank {

// Buckets B by number, zeros at first. Memory comes in pages of 2,048 buckets: each alone in the
// first 4 MiB, and then sixteen at once, which are a huge page of the system. The first page alone
// may be smaller: it doubles by a copy, so that what is small stays small.
template <class B>
class BucketPages {
  public:
    static constexpr unsigned page_bits = 11;
    static constexpr std::uint64_t page_buckets = 1U << page_bits;

    explicit BucketPages(Tally* tally) : tally_(tally) {}

    B& operator[](std::uint64_t n) { return pages_[n >> page_bits][n & (page_buckets - 1)]; }
    const B& operator[](std::uint64_t n) const {
        return pages_[n >> page_bits][n & (page_buckets - 1)];
    }
    bool has(std::uint64_t n) const {
        const std::uint64_t page = n >> page_bits;
        return page == 0 ? n < n_first_ : page < pages_.size() && pages_[page] != nullptr;
    }

    // Memory for bucket n. What fails changes nothing.
    void ensure(std::uint64_t n) {
        if (has(n)) {
            return;
        }
        if (const std::uint64_t page = n >> page_bits; page == 0) {
            enlarge_first(n);
        } else if (page < 2 * piece_pages) {
            add(page, 1);
        } else {
            add_piece(page, max_pages_);
        }
    }

    // For the first n, and no more than they take.
    void ensure_all(std::uint64_t n) {
        ensure(std::min(n, page_buckets) - 1);
        for (std::uint64_t page = 1; page < pages_for(n); ++page) {
            if (!has(page << page_bits)) {
                add_piece(page, pages_for(n));
            }
        }
    }

    // The most that n buckets ever take, the copy of the first page included.
    static std::uint64_t bytes_for(std::uint64_t n) {
        return (n > page_buckets ? pages_for(n) * page_buckets : std::bit_ceil(n) * 3 / 2) *
               sizeof(B);
    }
    // From now on as many as bytes_for(n), where no bucket from n on is asked for.
    void limit(std::uint64_t n) { max_pages_ = pages_for(n); }

    std::uint64_t n_bytes() const {
        std::uint64_t total = 0;
        for (const auto& piece : pieces_) {
            total += piece.n_bytes();
        }
        return total;
    }
    // Changes whenever buckets move.
    std::uint64_t n_moves() const { return n_moves_; }

    // visit(bucket) for every bucket there is memory for.
    template <class Visit>
    void each(Visit&& visit) {
        for (auto& piece : pieces_) {
            std::for_each_n(piece.data(), piece.size(), visit);
        }
    }
    template <class Visit>
    void each(Visit&& visit) const {
        for (const auto& piece : pieces_) {
            std::for_each_n(piece.data(), piece.size(), visit);
        }
    }

    // The same for the next n numbers from a cursor on, which begins at 0 and goes around, at most
    // once; returns where it then is.
    template <class Visit>
    std::uint64_t each_from(std::uint64_t cursor, std::uint64_t n, Visit&& visit) {
        const std::uint64_t end = pages_.size() * page_buckets;
        for (n = std::min(n, end); n > 0; --n, ++cursor) {
            cursor = cursor < end ? cursor : 0;
            if (has(cursor)) {
                visit((*this)[cursor]);
            }
        }
        return cursor;
    }

  private:
    static constexpr std::uint64_t piece_pages = huge_page_bytes / (page_buckets * sizeof(B));

    static std::uint64_t pages_for(std::uint64_t n) { return (n - 1) / page_buckets + 1; }

    void enlarge_first(std::uint64_t n) {
        AlignedArray<B> bigger(std::bit_ceil(n + 1), Fill::zeros, tally_);
        pages_.resize(std::max<std::size_t>(pages_.size(), 1));
        pieces_.resize(std::max<std::size_t>(pieces_.size(), 1));
        if (n_first_ > 0) {
            std::memcpy(bigger.data(), pieces_[0].data(), n_first_ * sizeof(B));
        }
        n_first_ = bigger.size();
        pages_[0] = bigger.data();
        pieces_[0] = std::move(bigger);
        ++n_moves_;
    }

    // As many of the sixteen as are within the limit and not there: a lower one may have ended
    // here.
    void add_piece(std::uint64_t page, std::uint64_t max_pages) {
        const std::uint64_t start = page / piece_pages * piece_pages;
        const std::uint64_t stop = std::min(start + piece_pages, std::max(max_pages, page + 1));
        std::uint64_t first = page, end = page + 1;
        while (first > start && !has((first - 1) << page_bits)) {
            --first;
        }
        while (end < stop && !has(end << page_bits)) {
            ++end;
        }
        add(first, end - first);
    }

    void add(std::uint64_t first, std::uint64_t n_pages) {
        pages_.resize(std::max<std::size_t>(pages_.size(), first + n_pages));
        B* buckets = pieces_.emplace_back(n_pages * page_buckets, Fill::zeros, tally_).data();
        for (std::uint64_t i = 0; i < n_pages; ++i) {
            pages_[first + i] = buckets + i * page_buckets;
        }
    }

    Tally* tally_;
    std::uint64_t max_pages_ = ~std::uint64_t{0};
    std::uint64_t n_first_ = 0;  // buckets of the first page
    std::uint64_t n_moves_ = 0;
    std::vector<B*> pages_;  // null where there is no memory
    std::vector<AlignedArray<B>> pieces_;
};

}  // namespace freshrank
