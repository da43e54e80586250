#include "sketch.hpp"

namespace freshrank {

namespace {

constexpr std::uint32_t halvings_told_apart = 1U << 15;

unsigned shift_of(const Sketch::Line& line, std::uint32_t n_halvings) {
    return std::min((n_halvings - line.n_halvings) % halvings_told_apart, 16U);
}

}  // namespace

void Sketch::allocate(std::uint64_t n_lines, Tally* tally) {
    if (lines_.size() == 0) {
        lines_ = AlignedArray<Line>(n_lines, Fill::zeros, tally);
    }
}

std::array<Sketch::Cell, Sketch::n_rows> Sketch::cells(std::uint64_t id) const {
    // Two halves of one keyed hash give all four positions. Source: Kirsch and Mitzenmacher, "Less
    // hashing, same performance", 2006.
    const std::uint64_t hash = siphash24(&id, sizeof id, key_);
    const std::uint64_t row_lines = lines_.size() / n_rows;
    const auto step = static_cast<std::uint32_t>(hash) | 1U;
    auto point = static_cast<std::uint32_t>(hash >> 32);
    std::array<Cell, n_rows> cells{};
    for (unsigned row = 0; row < n_rows; ++row, point += step) {
        const std::uint64_t cell = point * (row_lines * Line::n_cells) >> 32;
        cells[row] = {static_cast<std::size_t>(row * row_lines + cell / Line::n_cells),
                      static_cast<unsigned>(cell % Line::n_cells)};
    }
    return cells;
}

std::uint32_t Sketch::read(Cell cell, const PendingRules& rules, std::uint32_t now_s,
                           std::uint64_t clock_s) const {
    const Line& line = lines_.data()[cell.line];
    const std::uint32_t seen_s =
        rules.seen_s(LineTimes::unit(line.base, line.ages[cell.at]), clock_s);
    const std::uint32_t count = std::uint32_t{line.counts[cell.at]} >> shift_of(line, n_halvings_);
    return rules.is_stale(seen_s, clock_s) ? 0 : rules.decayed(count, seen_s, now_s);
}

std::uint32_t Sketch::estimate(std::uint64_t id, const PendingRules& rules, std::uint32_t now_s,
                               std::uint64_t clock_s) const {
    if (lines_.size() == 0) {
        return 0;
    }
    std::uint32_t least = max_pending_count;
    for (const Cell cell : cells(id)) {
        least = std::min(least, read(cell, rules, now_s, clock_s));
    }
    return least;
}

// Conservative: only cells below the new estimate move, and only up to it.
void Sketch::add(std::uint64_t id, std::uint32_t count, std::uint32_t threshold,
                 const PendingRules& rules, std::uint32_t now_s, std::uint64_t clock_s) {
    n_counted_ += std::min(count, threshold);
    if (n_counted_ * 4 > threshold * (lines_.size() / n_rows * Line::n_cells)) {
        halve();
    }
    const std::uint32_t raised = static_cast<std::uint32_t>(std::min<std::uint64_t>(
        std::uint64_t{estimate(id, rules, now_s, clock_s)} + count, max_pending_count));
    for (const Cell cell : cells(id)) {
        if (read(cell, rules, now_s, clock_s) >= raised) {
            continue;
        }
        Line& line = line_to_change(cell.line);
        const std::uint32_t unit =
            std::max(rules.unit(now_s), LineTimes::unit(line.base, line.ages[cell.at]));
        line.base = LineTimes::raise(line.base, unit, line.ages) & 0x1ffffU;
        line.ages[cell.at] = LineTimes::age(line.base, unit);
        line.counts[cell.at] = static_cast<std::uint16_t>(raised);
    }
}

void Sketch::halve() {
    n_counted_ /= 2;
    n_halvings_ = (n_halvings_ + 1) % halvings_told_apart;
    const std::size_t n_due = lines_.size() / (halvings_told_apart / 2) + 1;
    for (std::size_t i = 0; i < n_due; ++i) {
        line_to_change(cursor_);
        cursor_ = (cursor_ + 1) % lines_.size();
    }
}

Sketch::Line Sketch::settled(Line line, std::uint32_t n_halvings) {
    for (std::uint16_t& count : line.counts) {
        count = static_cast<std::uint16_t>(count >> shift_of(line, n_halvings));
    }
    line.n_halvings = 0;
    return line;
}

Sketch::Line& Sketch::line_to_change(std::size_t n) {
    Line& line = lines_.data()[n];
    if (kept_ != nullptr) {
        kept_->keep(static_cast<std::uint32_t>(n), &line);
    }
    if (line.n_halvings != n_halvings_) {
        line = settled(line, n_halvings_);
        line.n_halvings = n_halvings_ & 0x7fffU;
    }
    return line;
}

void Sketch::assign(std::span<const Line> lines, std::uint64_t n_counted) {
    std::copy(lines.begin(), lines.end(), lines_.data());
    n_counted_ = n_counted;
}

void Sketch::change_rules(const PendingRules& from, const PendingRules& to) {
    for (std::size_t i = 0; i < lines_.size(); ++i) {
        const Line old = lines_.data()[i];
        Line& line = line_to_change(i);
        line.base = 0;
        for (unsigned at = 0; at < Line::n_cells; ++at) {
            const std::uint32_t unit =
                to.unit(from.latest_s(LineTimes::unit(old.base, old.ages[at])));
            line.base =
                LineTimes::raise(line.base, unit, std::span(line.ages).first(at)) & 0x1ffffU;
            line.ages[at] = LineTimes::age(line.base, unit);
        }
    }
}

}  // namespace freshrank
