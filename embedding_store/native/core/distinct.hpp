// Which rows one batch touches, each once.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace freshrank {

// The distinct rows of one batch, numbered in order of first appearance.
class DistinctRows {
  public:
    explicit DistinctRows(std::size_t n_max)
        : slots_(std::bit_ceil(std::max<std::size_t>(2 * n_max, 16)), empty),
          shift_(64 - static_cast<unsigned>(std::countr_zero(slots_.size()))) {
        rows_.reserve(n_max);
    }

    // Returns the row's number and whether it is new.
    std::pair<std::uint32_t, bool> add(std::uint32_t row) {
        std::size_t at = (row * 0x9e3779b97f4a7c15ULL) >> shift_;
        while (slots_[at] != empty) {
            if (rows_[slots_[at]] == row) {
                return {slots_[at], false};
            }
            at = (at + 1) & (slots_.size() - 1);
        }
        slots_[at] = static_cast<std::uint32_t>(rows_.size());
        rows_.push_back(row);
        return {slots_[at], true};
    }

    std::span<const std::uint32_t> rows() const { return rows_; }

  private:
    static constexpr std::uint32_t empty = ~std::uint32_t{0};
    std::vector<std::uint32_t> slots_;
    std::vector<std::uint32_t> rows_;
    unsigned shift_;
};

}  // namespace freshrank
