// Small counts and when they were raised last, 4 bytes each; and a sketch of them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "hash.hpp"
#include "memory.hpp"
#include "preimages.hpp"

namespace freshrank {

inline constexpr std::uint32_t max_pending_count = 0xffff;

// A count, halved at every multiple of the half-life that lies between two times; 0 is never.
inline std::uint32_t decayed(std::uint32_t count, std::uint32_t seen_s, std::uint64_t now_s,
                             std::uint32_t half_life_s) {
    if (half_life_s == 0 || now_s <= seen_s) {
        return count;
    }
    const std::uint64_t n_halvings = now_s / half_life_s - seen_s / half_life_s;
    return n_halvings < 32 ? count >> n_halvings : 0;
}

// Times of one line, 16 bits each, since a base that follows the latest of them in steps of `step`
// units and stays at least one step behind it. What falls below the base is older than any rule
// looks back, and is lifted to the base.
struct LineTimes {
    static constexpr std::uint32_t step = 1U << 15;

    static std::uint32_t unit(std::uint32_t base, std::uint16_t age) { return base * step + age; }

    // The base under which `unit` fits, after moving the ages of the line to it.
    static std::uint32_t raise(std::uint32_t base, std::uint32_t unit,
                               std::span<std::uint16_t> ages) {
        if (unit < base * step || unit - base * step < 2 * step) {
            return base;
        }
        const std::uint32_t raised = unit / step - 1;
        const std::uint32_t n_units = (raised - base) * step;
        for (std::uint16_t& age : ages) {
            age = age > n_units ? static_cast<std::uint16_t>(age - n_units) : std::uint16_t{0};
        }
        return raised;
    }

    static std::uint16_t age(std::uint32_t base, std::uint32_t unit) {
        return unit < base * step ? std::uint16_t{0}
                                  : static_cast<std::uint16_t>(unit - base * step);
    }
};

// Rules of time, all of them event time in seconds.
struct PendingRules {
    PendingRules(std::uint32_t ttl, std::uint32_t half_life)
        : ttl_s(ttl),
          half_life_s(half_life),
          unit_s(static_cast<std::uint32_t>(
              std::max<std::uint64_t>(ttl, 16ULL * half_life) / 16'385 + 1)) {}

    std::uint32_t ttl_s;        // 0: kept for ever
    std::uint32_t half_life_s;  // 0: never halved
    // Times are kept in units of one second up to a ttl of 16,384 s, above it in 2^-14 of it: 16
    // bits hold more than any rule looks back, since after 16 half-lives nothing is left.
    std::uint32_t unit_s;

    std::uint32_t unit(std::uint32_t time_s) const { return time_s / unit_s; }
    // The latest second of a unit, so that nothing goes too early.
    std::uint32_t latest_s(std::uint32_t unit) const {
        return static_cast<std::uint32_t>(
            std::min<std::uint64_t>(std::uint64_t{unit} * unit_s + unit_s - 1, ~std::uint32_t{0}));
    }
    // When a unit of a line was, told by the clock. What other times of its line may have lifted is
    // as long ago as what reads as 0 here: so no answer depends on which times share a line.
    std::uint32_t seen_s(std::uint32_t unit, std::uint64_t clock_s) const {
        const std::uint64_t forgotten = std::uint64_t{unit} + LineTimes::step;
        return latest_s(forgotten <= clock_s / unit_s ? 0 : unit);
    }
    bool is_stale(std::uint32_t seen_s, std::uint64_t clock_s) const {
        return ttl_s != 0 && std::uint64_t{seen_s} + ttl_s < clock_s;
    }
    std::uint32_t decayed(std::uint32_t count, std::uint32_t seen_s, std::uint64_t now_s) const {
        return freshrank::decayed(count, seen_s, now_s, half_life_s);
    }
};

// Count-min sketch of four rows, with conservative update. Source: Cormode and Muthukrishnan, "An
// improved data stream summary", 2005; Estan and Varghese, "New directions in traffic measurement
// and accounting", 2002. With c cells a row, of N occurrences counted an id is given more than
// e * N / c too many with probability below e^-4 = 1.8 %. All cells are halved whenever another
// threshold * c / 8 were counted, as in Einziger, Friedman and Manes, "TinyLFU", 2017: N then stays
// below threshold * c / 4, and an id seen once passes a threshold of two with probability below
// (1 - e^-0.5)^4 = 2.4 %, a higher one more rarely still.
class Sketch {
  public:
    struct alignas(line_bytes) Line {
        static constexpr unsigned n_cells = 15;
        std::uint16_t counts[n_cells];
        std::uint16_t ages[n_cells];
        std::uint32_t base : 17;
        std::uint32_t n_halvings : 15;  // that its counts have seen, of all; 0 in a snapshot
    };
    static constexpr unsigned n_rows = 4;

    explicit Sketch(SipKey key) : key_(key) {}

    // Nothing happens if it has cells already.
    void allocate(std::uint64_t n_lines, Tally* tally);
    std::uint32_t estimate(std::uint64_t id, const PendingRules& rules, std::uint32_t now_s,
                           std::uint64_t clock_s) const;
    void add(std::uint64_t id, std::uint32_t count, std::uint32_t threshold,
             const PendingRules& rules, std::uint32_t now_s, std::uint64_t clock_s);
    void change_rules(const PendingRules& from, const PendingRules& to);

    static std::uint64_t lines_for(std::uint64_t n_bytes) {
        return n_bytes / (n_rows * sizeof(Line)) * n_rows;
    }
    std::uint64_t n_lines() const { return lines_.size(); }
    std::uint64_t n_counted() const { return n_counted_; }
    std::uint32_t n_halvings() const { return n_halvings_; }
    const Line& line(std::size_t n) const { return lines_.data()[n]; }
    // A line as it was after so many halvings of all, and as snapshots hold it.
    static Line settled(Line line, std::uint32_t n_halvings);
    void assign(std::span<const Line> lines, std::uint64_t n_counted);
    void watch(Preimages* kept) { kept_ = kept; }

  private:
    struct Cell {
        std::size_t line;
        unsigned at;
    };
    std::array<Cell, n_rows> cells(std::uint64_t id) const;
    std::uint32_t read(Cell cell, const PendingRules& rules, std::uint32_t now_s,
                       std::uint64_t clock_s) const;

    void halve();
    Line& line_to_change(std::size_t n);

    SipKey key_;
    Preimages* kept_ = nullptr;  // of a snapshot under way
    AlignedArray<Line> lines_;
    std::uint64_t n_counted_ = 0;  // since the cells were halved last, and what was left then
    // Lines are halved when they are changed, read as if they were, and looked after in turn, so
    // that none falls as far behind as its number of halvings can tell.
    std::uint32_t n_halvings_ = 0;
    std::size_t cursor_ = 0;
};

}  // namespace freshrank
