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

// Calls use(i, row) in order for every id, row being no_row where absent; prefetches the
// memory that fetch(row) names a group earlier. `use` may insert into the index, but must not move
// existing rows.
template <class Fetch, class Use>
void for_each_row(const Index& index, std::span<const std::uint64_t> ids, Fetch&& fetch,
                  Use&& use) {
    const GroupProbes& probes = best_probes();
    std::uint64_t hashes[2][group_keys];
    std::uint32_t rows[2][group_keys];
    const std::size_t n_groups = (ids.size() + group_keys - 1) / group_keys;
    const auto length = [&](std::size_t group) {
        return std::min(group_keys, ids.size() - group * group_keys);
    };
    for (std::size_t turn = 0; n_groups > 0 && turn < n_groups + 2; ++turn) {
        if (turn < n_groups) {
            const std::uint64_t* group = ids.data() + turn * group_keys;
            std::uint64_t* hash = hashes[turn & 1];
            probes.hash(index, group, length(turn), hash);
            for (std::size_t i = 0; i < length(turn); ++i) {
                prefetch({&index.home_bucket(hash[i]), sizeof(Bucket)});
            }
        }
        if (turn >= 1 && turn - 1 < n_groups) {
            const std::size_t at = turn - 1;
            const std::uint64_t* group = ids.data() + at * group_keys;
            std::uint32_t* found = rows[at & 1];
            std::uint32_t undecided[group_keys];
            const std::size_t n_undecided =
                probes.probe(index, group, hashes[at & 1], length(at), found, undecided);
            for (std::size_t n = 0; n < n_undecided; ++n) {
                const std::uint32_t i = undecided[n];
                found[i] = index.find(group[i], hashes[at & 1][i]);
            }
            for (std::size_t i = 0; i < length(at); ++i) {
                if (found[i] != no_row) {
                    for (const Lines& lines : fetch(found[i])) {
                        prefetch(lines);
                    }
                }
            }
        }
        if (turn >= 2) {
            const std::size_t at = turn - 2;
            for (std::size_t i = 0; i < length(at); ++i) {
                use(at * group_keys + i, rows[at & 1][i]);
            }
        }
    }
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

// Copies the first `width` floats of every id's row; absent ids give zeros. found may be null.
inline void gather(const Index& index, const RowSlabs& slabs, std::span<const std::uint64_t> ids,
                   std::uint32_t width, float* out, std::uint8_t* found) {
    with_width(width, [&](auto n_floats) {
        for_each_row(
            index, ids, [&](std::uint32_t row) { return std::array{slabs.lines(row, width)}; },
            [&](std::size_t i, std::uint32_t row) {
                copy_row(slabs, row, n_floats, out + i * n_floats);
                if (found != nullptr) {
                    found[i] = row != no_row;
                }
            });
    });
}

}  // namespace freshrank
