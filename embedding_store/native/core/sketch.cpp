#include "sketch.hpp"

namespace freshrank {

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
    return rules.is_stale(seen_s, clock_s) ? 0 : rules.decayed(line.counts[cell.at], seen_s, now_s);
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
        for (std::size_t i = 0; i < lines_.size(); ++i) {
            for (std::uint16_t& cell : line_to_change(i).counts) {
                cell /= 2;
            }
        }
        n_counted_ /= 2;
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
        line.base = LineTimes::raise(line.base, unit, line.ages);
        line.ages[cell.at] = LineTimes::age(line.base, unit);
        line.counts[cell.at] = static_cast<std::uint16_t>(raised);
    }
}

Sketch::Line& Sketch::line_to_change(std::size_t n) {
    Line& line = lines_.data()[n];
    if (kept_ != nullptr) {
        kept_->keep(static_cast<std::uint32_t>(n), &line);
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
            line.base = LineTimes::raise(line.base, unit, std::span(line.ages).first(at));
            line.ages[at] = LineTimes::age(line.base, unit);
        }
    }
}

}  // namespace freshrank
