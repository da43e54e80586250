// Snapshots as bytes in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/table.hpp"

namespace freshrank::testing {

using Bytes = std::vector<std::uint8_t>;

inline std::unique_ptr<Table> restore(const std::vector<Bytes>& chain,
                                      std::shared_ptr<Budget> budget = nullptr) {
    std::vector<SnapshotSource> sources;
    for (const Bytes& file : chain) {
        sources.emplace_back([left = std::span<const std::uint8_t>(file)]() mutable {
            return std::exchange(left, {});
        });
    }
    return Table::restore(sources, std::move(budget));
}

}  // namespace freshrank::testing
