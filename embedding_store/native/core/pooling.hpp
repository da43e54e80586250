// Bags of ids and how each becomes one row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "errors.hpp"

namespace freshrank {

enum class Pooling : std::uint32_t { sum = 0, mean = 1, sqrtn = 2 };

inline Pooling pooling_named(std::string_view name) {
    constexpr const char* names[] = {"sum", "mean", "sqrtn"};
    for (std::uint32_t i = 0; i < std::size(names); ++i) {
        if (names[i] == name) {
            return static_cast<Pooling>(i);
        }
    }
    throw StoreError("mode is '" + std::string(name) + "'; it must be sum, mean or sqrtn");
}

// What the sum over n rows is divided by; absent rows count as zeros.
inline float divisor(Pooling pooling, std::size_t n) {
    if (n <= 1 || pooling == Pooling::sum) {
        return 1;
    }
    const auto n_rows = static_cast<float>(n);
    return pooling == Pooling::mean ? n_rows : std::sqrt(n_rows);
}

inline void divide(float* row, std::size_t n_floats, float by) {
    if (by != 1) {
        for (std::size_t column = 0; column < n_floats; ++column) {
            row[column] /= by;
        }
    }
}

inline void add_to(float* sum, const float* row, std::size_t n_floats) {
    for (std::size_t column = 0; column < n_floats; ++column) {
        sum[column] += row[column];
    }
}

// Bag i holds ids[offsets[i]:offsets[i + 1]]; offsets never fall and begin at 0, but for a slice of
// others, where they count from their first.
struct IdBags {
    std::span<const std::uint64_t> ids;
    std::span<const std::int64_t> offsets;
    Pooling pooling = Pooling::sum;

    std::size_t size() const { return offsets.size() - 1; }
    // Where a bag ends among the ids.
    std::size_t end(std::size_t bag) const {
        return static_cast<std::size_t>(offsets[bag + 1] - offsets[0]);
    }
    std::size_t length(std::size_t bag) const {
        return static_cast<std::size_t>(offsets[bag + 1] - offsets[bag]);
    }
    IdBags slice(std::size_t first, std::size_t stop) const {
        const std::size_t start = first == 0 ? 0 : end(first - 1);
        const std::size_t n_ids = static_cast<std::size_t>(offsets[stop] - offsets[first]);
        return {ids.subspan(start, n_ids), offsets.subspan(first, stop - first + 1), pooling};
    }
};

// Calls each(use), which calls use(i, row) for every id i that has a row, in order, and is told its
// bag; pools the rows into out, [n, n_floats].
template <class Each>
void pool_bags(const IdBags& bags, std::size_t n_floats, float* out, Each&& each) {
    std::fill_n(out, bags.size() * n_floats, 0.0f);
    std::size_t bag = 0;
    each([&](std::size_t i, const float* row) {
        while (bags.end(bag) <= i) {
            ++bag;
        }
        add_to(out + bag * n_floats, row, n_floats);
        return bag;
    });
    for (bag = 0; bag < bags.size(); ++bag) {
        divide(out + bag * n_floats, n_floats, divisor(bags.pooling, bags.length(bag)));
    }
}

// The same bags with at most their first `first_n` ids, copied only where one is longer.
class FirstOfBags {
  public:
    FirstOfBags(const IdBags& bags, std::size_t first_n) : bags_(bags) {
        std::size_t n_max = 0;
        for (std::size_t bag = 0; bag < bags.size(); ++bag) {
            n_max = std::max(n_max, bags.length(bag));
        }
        if (first_n == 0 || n_max <= first_n) {
            return;
        }
        offsets_.push_back(0);
        for (std::size_t bag = 0; bag < bags.size(); ++bag) {
            const auto first = bags.ids.begin() + static_cast<std::ptrdiff_t>(bags.offsets[bag]);
            const std::size_t n = std::min(bags.length(bag), first_n);
            ids_.insert(ids_.end(), first, first + static_cast<std::ptrdiff_t>(n));
            offsets_.push_back(static_cast<std::int64_t>(ids_.size()));
        }
        bags_.ids = ids_;
        bags_.offsets = offsets_;
    }
    FirstOfBags(const FirstOfBags&) = delete;
    FirstOfBags& operator=(const FirstOfBags&) = delete;

    const IdBags& bags() const { return bags_; }

  private:
    IdBags bags_;
    std::vector<std::uint64_t> ids_;
    std::vector<std::int64_t> offsets_;
};

}  // namespace freshrank
