// Bags of ids: what a read leaves of them, and rows pooled into one.
#include <array>
#include <cstring>

#include "pipeline.hpp"
#include "table.hpp"

namespace freshrank {

void Table::remember(std::span<const Bags> bags, std::size_t n_rows, std::size_t n_slots) {
    std::size_t n_ids = 0;
    reading_.parts.resize(bags.size());
    for (std::size_t p = 0; p < bags.size(); ++p) {
        const Bags& own = bags[p];
        auto& part = reading_.parts[p];
        part.slot = own.slot;
        part.pooling = own.of.pooling;
        part.is_single = own.of.ids.size() == n_rows;
        for (std::size_t i = 0; part.is_single && i < n_rows; ++i) {
            part.is_single = own.of.offsets[i + 1] - own.of.offsets[i] == 1;
        }
        part.offsets.clear();
        if (!part.is_single) {
            part.offsets.assign(own.of.offsets.begin(), own.of.offsets.end());
        }
        n_ids += own.of.ids.size();
    }
    reading_.rows.resize(n_ids);
    reading_.n_rows = n_rows;
    reading_.n_slots = n_slots;
    reading_.n_removed = counters_.n_removed();
    reading_.is_open = false;  // until every row is known
}

// Of the batch's rows from `first` to `end` - 1.
void Table::pool(std::span<const Bags> bags, std::size_t first, std::size_t end,
                 float* pooled) const {
    const std::uint32_t width = config_.width();
    const std::size_t stride = reading_.n_slots * width;
    std::span<const std::uint32_t> rows = reading_.rows;
    with_width(width, [&](auto n_floats) {
        std::size_t start = 0;  // of the part
        for (std::size_t p = 0; p < bags.size(); ++p) {
            const auto& part = reading_.parts[p];
            std::size_t at = start + static_cast<std::size_t>(bags[p].of.offsets[first]);
            start += bags[p].of.ids.size();
            float* to = pooled + first * stride + part.slot * n_floats;
            for (std::size_t i = first; i < end; ++i, to += stride) {
                const std::size_t n = part.n_ids(i);
                if (n == 0) {
                    std::memset(to, 0, n_floats * sizeof(float));
                }
                for (std::size_t k = 0; k < n; ++k, ++at) {
                    fetch_ahead(slabs_, rows, at, width);
                    if (k == 0) {
                        copy_row(slabs_, rows[at], n_floats, to);
                    } else if (rows[at] != no_row) {
                        add_to(to, slabs_.at(rows[at]), n_floats);
                    }
                }
                divide(to, n_floats, divisor(part.pooling, n));
            }
        }
    });
}

void Table::lookup_pooled(const IdBags& bags, float* out) const {
    const std::shared_lock lock(mutex_);
    const std::uint32_t width = config_.width();
    workers_->run_ranges(bags.size(), [&](std::size_t first, std::size_t end) {
        const IdBags own = bags.slice(first, end);
        with_width(width, [&](auto n_floats) {
            pool_bags(own, n_floats, out + first * n_floats, [&](auto&& use) {
                for_each_row(
                    index_, own.ids,
                    [&](std::uint32_t row) { return std::array{slabs_.lines(row, width)}; },
                    [&](std::size_t i, std::uint32_t row) {
                        if (row != no_row) {
                            use(i, slabs_.at(row));
                        }
                    });
            });
        });
    });
}

}  // namespace freshrank
