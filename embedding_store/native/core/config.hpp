// What a table is told once, and the checks that apply to it, from Python or from a snapshot.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "errors.hpp"
#include "optimizer_config.hpp"

namespace freshrank {

inline constexpr std::uint32_t max_dim = 16384;
inline constexpr std::uint32_t max_min_count = 65536;
inline constexpr std::int64_t max_time_s = 0xffffffff;
inline constexpr const char* first_order_prefix = "first_order_optimizer.";

// What a table may hold; 0 sets no limit. Stands in snapshots as it lies in memory.
struct Limits {
    std::uint64_t max_bytes = 0;      // everything: index, rows, pending counts, tombstones, growth
    std::uint64_t pending_bytes = 0;  // of these, pending counts
    std::uint64_t min_rows = 0;       // expiry stops at as few
    std::uint32_t count_half_life_s = 0;
    std::uint32_t reserved = 0;
};
inline constexpr std::uint64_t min_pending_bytes = 1 << 16;

// What may change while a table lives: it decides what happens next, not what rows mean.
struct Policy {
    OptimizerConfig optimizer;
    std::optional<OptimizerConfig> first_order_optimizer;
    double probability = 1;
    std::uint32_t min_count = 1;
    std::uint32_t ttl_s = 0;
    std::optional<std::uint64_t> min_rows = {};  // these two: none leaves them as they are
    std::optional<std::uint32_t> count_half_life_s = {};
};

// Columns of a row that one optimizer moves, and which float of the row's state is its first.
struct Slice {
    OptimizerConfig optimizer;
    std::uint32_t column;
    std::uint32_t n_columns;
    std::uint32_t state;
};

struct TableConfig {
    std::uint32_t dim = 0;
    bool first_order = false;
    OptimizerConfig optimizer;
    std::optional<OptimizerConfig> first_order_optimizer;  // none: `optimizer` moves it too
    std::uint32_t slot = 0;
    double init_scale = 0;
    double probability = 1;
    std::uint64_t seed = 0;
    std::uint32_t min_count = 1;
    std::uint32_t ttl_s = 0;
    Limits limits;

    std::uint32_t width() const { return dim + (first_order ? 1 : 0); }

    // One slice where one optimizer treats all columns alike, else the vector and the first-order
    // column. Row-wise Adagrad never lets the two share an accumulator.
    std::vector<Slice> slices() const {
        const bool is_split = first_order_optimizer.has_value() ||
                              (first_order && optimizer.kind == OptimizerKind::rowwise_adagrad);
        if (!is_split) {
            return {{optimizer, 0, width(), 0}};
        }
        std::vector<Slice> slices;
        std::uint32_t state = 0;
        if (dim > 0) {
            slices.push_back({optimizer, 0, dim, state});
            state += optimizer.n_state(dim);
        }
        OptimizerConfig last = first_order_optimizer.value_or(optimizer);
        if (last.kind == OptimizerKind::rowwise_adagrad) {
            last.kind = OptimizerKind::adagrad;  // which is the same in one column
        }
        slices.push_back({last, dim, 1, state});
        return slices;
    }

    // Floats of optimizer state.
    std::uint32_t n_state() const {
        const Slice last = slices().back();
        return last.state + last.optimizer.n_state(last.n_columns);
    }

    // Of them, those that stand behind the weights: a single float has its place in the row's
    // metadata, so that 16 weights of row-wise Adagrad fill one cache line and not two.
    std::uint32_t n_state_behind() const { return n_state() == 1 ? 0 : n_state(); }
};

// An integer that came as Python's int or a file's field, brought to 32 bits or refused by name.
inline std::uint32_t in_range(std::string_view name, std::int64_t value, std::int64_t low,
                              std::int64_t high) {
    require(value >= low && value <= high, std::string(name) + " is " + std::to_string(value) +
                                               "; it must be from " + std::to_string(low) + " to " +
                                               std::to_string(high));
    return static_cast<std::uint32_t>(value);
}

inline void validate(const TableConfig& config) {
    in_range("dim", config.dim, 0, max_dim);
    require(config.width() > 0,
            "dim is 0 and first_order is off: a row would hold nothing; set one of them");
    require(config.first_order || !config.first_order_optimizer,
            "first_order_optimizer is given and first_order is off: there is no such column");
    in_range("min_count", config.min_count, 1, max_min_count);
    validate(config.optimizer);
    if (config.first_order_optimizer) {
        validate(*config.first_order_optimizer, first_order_prefix);
    }
    check_value("init_scale", config.init_scale, config.init_scale >= 0, "finite and not negative");
    check_value("probability", config.probability,
                config.probability > 0 && config.probability <= 1, "above 0 and at most 1");
    const std::uint64_t pending_bytes = config.limits.pending_bytes;
    require(pending_bytes == 0 || pending_bytes >= min_pending_bytes,
            "pending_bytes is " + std::to_string(pending_bytes) + "; it must be 0 or at least " +
                std::to_string(min_pending_bytes));
}

}  // namespace freshrank
