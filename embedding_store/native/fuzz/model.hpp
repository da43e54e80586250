// A table's rules on plain maps, one id at a time, written from FORMAT.md. Under limits of bytes
// the model does not foresee what is born and what goes: it is told, and knows the rest.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/config.hpp"
#include "core/hash.hpp"

namespace freshrank::fuzz {

// Keys of a map whose entries are wanted, ascending.
template <class Map, class IsWanted>
std::vector<std::uint64_t> sorted_keys(const Map& map, IsWanted&& is_wanted) {
    std::vector<std::uint64_t> keys;
    for (const auto& [key, entry] : map) {
        if (is_wanted(entry)) {
            keys.push_back(key);
        }
    }
    std::sort(keys.begin(), keys.end());
    return keys;
}

struct ModelRow {
    std::vector<float> weights;
    std::vector<float> squares;  // Adagrad's
    std::uint32_t born_s = 0;
    std::uint32_t last_seen_s = 0;
    std::uint32_t frequency = 0;
    std::uint64_t version = 0;
};

class Model {
  public:
    struct Waiting {
        std::uint32_t count = 0;
        std::uint32_t seen_s = 0;
    };

    explicit Model(const TableConfig& of) : config(of) {}

    TableConfig config;
    std::uint64_t version = 1;
    std::uint64_t clock_s = 0;
    std::uint64_t n_admitted = 0;
    std::uint64_t n_filtered = 0;
    std::unordered_map<std::uint64_t, ModelRow> rows;
    std::unordered_map<std::uint64_t, Waiting> pending;
    std::unordered_map<std::uint64_t, std::uint64_t> tombstones;

    // Whether it knows what a step does, too.
    bool has_weights() const {
        return !config.first_order_optimizer && config.optimizer.accumulator_half_life_s == 0 &&
               config.optimizer.clip_norm == 0 &&
               (config.optimizer.kind == OptimizerKind::sgd ||
                config.optimizer.kind == OptimizerKind::adagrad);
    }
    bool has_limits() const { return config.limits.max_bytes + config.limits.pending_bytes > 0; }
    bool is_stale(std::uint32_t seen_s) const {
        return config.ttl_s > 0 && std::uint64_t{seen_s} + config.ttl_s < clock_s;
    }

    std::uint32_t faded(std::uint32_t count, std::uint32_t seen_s, std::uint64_t now_s) const {
        const std::uint32_t half_life_s = config.limits.count_half_life_s;
        if (half_life_s == 0 || now_s <= seen_s) {
            return count;
        }
        const std::uint64_t n = now_s / half_life_s - seen_s / half_life_s;
        return n > 31 ? 0 : count >> n;
    }

    std::vector<float> initial_weights(std::uint64_t id) const {
        std::vector<float> weights(config.width());
        const std::uint64_t stream = mix64(mix64(config.seed) ^ config.slot);
        for (std::uint32_t column = 0; column < config.dim; ++column) {
            const std::uint64_t k = mix64(mix64(stream ^ id) + column) >> 41;
            const auto numerator = static_cast<std::int64_t>(2 * k + 1) - (1 << 23);
            weights[column] = static_cast<float>(static_cast<double>(numerator) / (1 << 23)) *
                              static_cast<float>(config.init_scale);
        }
        return weights;
    }

    void move_clock(std::uint64_t now_s) {
        clock_s = std::max(clock_s, now_s);
        std::erase_if(pending, [&](const auto& entry) { return is_stale(entry.second.seen_s); });
    }

    // The clock has been moved.
    void count(std::uint64_t id, std::uint32_t n, std::uint32_t now_s) {
        if (const auto own = rows.find(id); own != rows.end()) {
            touch(own->second, n, now_s);
            return;
        }
        const auto entry = pending.find(id);
        const Waiting before = entry == pending.end() ? Waiting{} : entry->second;
        const std::uint32_t known = faded(before.count, before.seen_s, now_s);
        const std::uint32_t missing = config.min_count - std::min(known, config.min_count);
        const std::uint32_t n_passed = passed(id, n, missing);
        if (n_passed >= missing) {
            give_birth(id, now_s).frequency = saturated(std::uint64_t{known} + n);
            return;
        }
        n_filtered += n;
        const Waiting after{std::min(known + n_passed, 65535U), std::max(before.seen_s, now_s)};
        if (after.count > 0) {
            pending[id] = after;
        } else if (entry != pending.end()) {
            pending.erase(entry);
        }
        move_clock(clock_s);
    }

    ModelRow& give_birth(std::uint64_t id, std::uint32_t now_s) {
        pending.erase(id);
        tombstones.erase(id);
        ++n_admitted;
        const auto initial = static_cast<float>(config.optimizer.initial_accumulator);
        return rows[id] = {.weights = initial_weights(id),
                           .squares = std::vector<float>(config.width(), initial),
                           .born_s = now_s,
                           .last_seen_s = now_s,
                           .frequency = 0,
                           .version = version};
    }

    void remove(std::uint64_t id) {
        rows.erase(id);
        tombstones[id] = version;
    }

    // Gradients [n, width] are summed by id, in order; returns the number of rows that stepped.
    std::uint64_t apply(const std::vector<std::uint64_t>& ids, const float* gradients) {
        std::map<std::uint64_t, std::vector<float>> sums;
        for (std::size_t i = 0; i < ids.size(); ++i) {
            const float* own = gradients + i * config.width();
            auto& sum = sums[ids[i]];
            sum.resize(config.width());
            for (std::size_t column = 0; column < sum.size(); ++column) {
                sum[column] += own[column];
            }
        }
        std::uint64_t n_rows = 0;
        for (const auto& [id, sum] : sums) {
            if (const auto own = rows.find(id); own != rows.end()) {
                step(own->second, sum);
                own->second.version = version;
                ++n_rows;
            }
        }
        return n_rows;
    }

    void touch(ModelRow& row, std::uint32_t n, std::uint32_t now_s) const {
        row.frequency = saturated(std::uint64_t{faded(row.frequency, row.last_seen_s, now_s)} + n);
        row.last_seen_s = std::max(row.last_seen_s, now_s);
    }

  private:
    static std::uint32_t saturated(std::uint64_t n) {
        return static_cast<std::uint32_t>(std::min<std::uint64_t>(n, ~std::uint32_t{0}));
    }

    // How many of n occurrences the dice let through, `enough` at most.
    std::uint32_t passed(std::uint64_t id, std::uint32_t n, std::uint32_t enough) {
        if (config.probability >= 1) {
            return std::min(n, enough);
        }
        std::uint32_t n_passed = 0;
        const std::uint64_t stream = mix64(mix64(config.seed ^ 0x61646d6974) ^ id);
        for (; n > 0 && n_passed < enough; --n) {
            const auto draw = static_cast<double>(mix64(stream ^ mix64(n_draws_++)) >> 11);
            n_passed += draw < std::ldexp(config.probability, 53) ? 1 : 0;
        }
        return n_passed;
    }

    void step(ModelRow& row, const std::vector<float>& sum) const {
        const auto lr = static_cast<float>(config.optimizer.lr);
        const auto eps = static_cast<float>(config.optimizer.eps);
        for (std::size_t column = 0; column < sum.size(); ++column) {
            if (config.optimizer.kind == OptimizerKind::sgd) {
                row.weights[column] -= lr * sum[column];
            } else {
                row.squares[column] += sum[column] * sum[column];
                row.weights[column] -= lr * sum[column] / (std::sqrt(row.squares[column]) + eps);
            }
        }
    }

    std::uint64_t n_draws_ = 0;
};

}  // namespace freshrank::fuzz
