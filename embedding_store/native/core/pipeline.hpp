// Batched reads that hide memory latency: while one group of keys is being used, the rows of the
// next are on their way, and so are the buckets of the one after.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "index.hpp"
#include "pool.hpp"
#include "probe.hpp"

namespace freshrank {

// Calls home(start, n, turn), then probe(start, n, turn), then use(start, n, turn) for every group
// of `n_keys` keys, each a group behind the one before; `turn` is 0 or 1 by turns.
template <class Home, class Probe, class Use>
void in_groups(std::size_t n_keys, Home&& home, Probe&& probe, Use&& use) {
    const std::size_t n_groups = (n_keys + group_keys - 1) / group_keys;
    const auto visit = [&](std::size_t group, auto&& f) {
        if (group < n_groups) {
            const std::size_t start = group * group_keys;
            f(start, std::min(group_keys, n_keys - start), group & 1);
        }
    };
    for (std::size_t group = 0; n_groups > 0 && group < n_groups + 2; ++group) {
        visit(group, home);
        visit(group - 1, probe);  // before the first group: far beyond the last
        visit(group - 2, use);
    }
}

// Calls use(i, row) in order for every id, row being no_row where absent; prefetches the
// memory that fetch(row) names a group earlier. `use` may insert into the index, but must not move
// existing rows.
template <class Fetch, class Use>
void for_each_row(const Index& index, std::span<const std::uint64_t> ids, Fetch&& fetch, Use&& use,
                  const GroupLoops& loops = best_loops()) {
    const Bucket* homes[2][group_keys];
    std::uint32_t rows[2][group_keys];
    std::uint64_t n_moves[2];
    in_groups(
        ids.size(),
        [&](std::size_t start, std::size_t n, std::size_t turn) {
            n_moves[turn] = index.n_moves();
            loops.home(index, ids.data() + start, n, homes[turn]);
        },
        [&](std::size_t start, std::size_t n, std::size_t turn) {
            if (n_moves[turn] != index.n_moves()) {  // an insert has moved buckets
                loops.home(index, ids.data() + start, n, homes[turn]);
            }
            loops.find(index, ids.data() + start, homes[turn], n, rows[turn]);
            for (std::size_t i = 0; i < n; ++i) {
                if (rows[turn][i] != no_row) {
                    for (const Lines& lines : fetch(rows[turn][i])) {
                        prefetch(lines);
                    }
                }
            }
        },
        [&](std::size_t start, std::size_t n, std::size_t turn) {
            for (std::size_t i = 0; i < n; ++i) {
                use(start + i, rows[turn][i]);
            }
        });
}

inline std::array<Lines, 0> fetch_nothing(std::uint32_t) {
    return {};
}

// Calls f with the width as a compile-time constant where it is a common one, so that copying a
// row is a few moves instead of a call to memcpy.
template <class F>
void with_width(std::uint32_t width, F&& f) {
    switch (width) {
        case 1:
            return f(std::integral_constant<std::size_t, 1>{});
        case 8:
            return f(std::integral_constant<std::size_t, 8>{});
        case 9:
            return f(std::integral_constant<std::size_t, 9>{});
        case 16:
            return f(std::integral_constant<std::size_t, 16>{});
        case 17:
            return f(std::integral_constant<std::size_t, 17>{});
        case 32:
            return f(std::integral_constant<std::size_t, 32>{});
        case 33:
            return f(std::integral_constant<std::size_t, 33>{});
        case 64:
            return f(std::integral_constant<std::size_t, 64>{});
        default:
            return f(std::size_t{width});
    }
}

// Fetches the row that a loop over `rows` at i will read some turns later.
inline void fetch_ahead(const RowSlabs& slabs, std::span<const std::uint32_t> rows, std::size_t i,
                        std::uint32_t width) {
    constexpr std::size_t ahead = 24;
    if (i + ahead < rows.size() && rows[i + ahead] != no_row) {
        prefetch(slabs.lines(rows[i + ahead], width));
    }
}

// The first floats of a row; no_row reads zeros.
inline void copy_row(const RowSlabs& slabs, std::uint32_t row, auto n_floats, float* to) {
    if (row == no_row) {
        std::memset(to, 0, n_floats * sizeof(float));
    } else {
        std::memcpy(to, slabs.at(row), n_floats * sizeof(float));
    }
}

// Copies the first `width` floats of every id's row; absent ids give zeros.
inline void gather(const Index& index, const RowSlabs& slabs, std::span<const std::uint64_t> ids,
                   std::uint32_t width, float* out, const GroupLoops& loops = best_loops()) {
    const Bucket* homes[2][group_keys];
    const float* places[2][group_keys];
    in_groups(
        ids.size(),
        [&](std::size_t start, std::size_t n, std::size_t turn) {
            loops.home(index, ids.data() + start, n, homes[turn]);
        },
        [&](std::size_t start, std::size_t n, std::size_t turn) {
            loops.locate(index, slabs, ids.data() + start, homes[turn], n, width * sizeof(float),
                         places[turn]);
        },
        [&](std::size_t start, std::size_t n, std::size_t turn) {
            loops.copy(places[turn], n, width, out + start * width);
        });
}

}  // namespace freshrank
