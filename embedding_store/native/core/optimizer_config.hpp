// What an optimizer is told, and the checks that apply to it, from Python or from a snapshot.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "errors.hpp"

namespace freshrank {

enum class OptimizerKind : std::uint32_t {
    sgd = 0,
    adagrad = 1,
    rowwise_adagrad = 2,
    adam = 3,
    ftrl = 4
};
inline constexpr std::uint32_t n_optimizer_kinds = 5;
inline constexpr const char* optimizer_names[n_optimizer_kinds] = {
    "sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl"};

inline const char* name_of(OptimizerKind kind) {
    return optimizer_names[static_cast<std::uint32_t>(kind)];
}

inline OptimizerKind optimizer_named(std::string_view name) {
    for (std::uint32_t i = 0; i < n_optimizer_kinds; ++i) {
        if (optimizer_names[i] == name) {
            return static_cast<OptimizerKind>(i);
        }
    }
    throw StoreError("optimizer is '" + std::string(name) +
                     "'; it must be sgd, adagrad, rowwise_adagrad, adam or ftrl");
}

// Formulas and order of state: FORMAT.md. A snapshot holds this struct as it lies in memory.
struct OptimizerConfig {
    OptimizerKind kind = OptimizerKind::sgd;
    std::uint32_t accumulator_half_life_s = 0;  // 0: what was added stays
    double lr = 0;
    double l1 = 0;
    double l2 = 0;
    double weight_decay = 0;
    double eps = 0;
    double beta = 0;
    double beta1 = 0;
    double beta2 = 0;
    double initial_accumulator = 0;
    double clip_norm = 0;   // 0: no limit
    double clip_value = 0;  // 0: no limit

    bool operator==(const OptimizerConfig&) const = default;

    bool is_adagrad() const {
        return kind == OptimizerKind::adagrad || kind == OptimizerKind::rowwise_adagrad;
    }

    // Floats of state that go with n_columns weights.
    std::uint32_t n_state(std::uint32_t n_columns) const {
        const std::uint32_t n_times = accumulator_half_life_s > 0 ? 1 : 0;
        switch (kind) {
            case OptimizerKind::sgd:
                return 0;
            case OptimizerKind::adagrad:
                return n_columns + n_times;
            case OptimizerKind::rowwise_adagrad:
                return 1 + n_times;
            case OptimizerKind::adam:
                return 2 * n_columns + 1;
            case OptimizerKind::ftrl:
                return 2 * n_columns;
        }
        return 0;
    }
};
static_assert(sizeof(OptimizerConfig) == 96, "its layout is part of the file format");

// NaN where a value does not survive the way to float32, in which all arithmetic is.
inline float as_float(double value) {
    return std::abs(value) <= double{std::numeric_limits<float>::max()}
               ? static_cast<float>(value)
               : std::numeric_limits<float>::quiet_NaN();
}

inline void check_value(const std::string& name, double value, bool is_good, const char* rule) {
    require(is_good && !std::isnan(as_float(value)),
            name + " is " + std::to_string(value) + "; it must be " + rule);
}

// Errors name a field as `of` + its name.
inline void validate(const OptimizerConfig& config, const std::string& of = "") {
    const auto check = [&](const char* name, double value, bool is_good, const char* rule) {
        check_value(of + name, value, is_good, rule);
    };
    const auto not_negative = [&](const char* name, double value) {
        check(name, value, value >= 0, "finite and not negative");
    };
    const auto limit = [&](const char* name, double value) {
        check(name, value, value == 0 || as_float(value) > 0, "above 0, or 0 for no limit");
    };
    const bool is_ftrl = config.kind == OptimizerKind::ftrl;
    not_negative("lr", config.lr);
    not_negative("l2", config.l2);
    check("l1", config.l1, is_ftrl ? config.l1 >= 0 : config.l1 == 0,
          is_ftrl ? "finite and not negative" : "0: only ftrl has it");
    check("weight_decay", config.weight_decay,
          is_ftrl ? config.weight_decay == 0
                  : config.weight_decay >= 0 && config.lr * config.weight_decay <= 1,
          is_ftrl ? "0: ftrl has l2 instead" : "from 0 to 1 / lr");
    // eps keeps a row whose accumulator is zero from dividing zero by zero; in ftrl beta does.
    const bool divides_by_eps = config.is_adagrad() || config.kind == OptimizerKind::adam;
    check("eps", config.eps, divides_by_eps ? as_float(config.eps) > 0 : config.eps >= 0,
          divides_by_eps ? "finite and above 0" : "finite and not negative");
    not_negative("initial_accumulator", config.initial_accumulator);
    const bool needs_beta = is_ftrl && as_float(config.initial_accumulator) == 0;
    check("beta", config.beta, needs_beta ? as_float(config.beta) > 0 : config.beta >= 0,
          needs_beta ? "above 0 where initial_accumulator is 0" : "finite and not negative");
    check("beta1", config.beta1, config.beta1 >= 0 && as_float(config.beta1) < 1,
          "at least 0 and below 1");
    check("beta2", config.beta2, config.beta2 >= 0 && as_float(config.beta2) < 1,
          "at least 0 and below 1");
    require(config.is_adagrad() || config.accumulator_half_life_s == 0,
            of + "accumulator_half_life_s is " + std::to_string(config.accumulator_half_life_s) +
                "; it must be 0: only adagrad and rowwise_adagrad have it");
    limit("clip_norm", config.clip_norm);
    limit("clip_value", config.clip_value);
}

// Refuses what would give the state that rows already hold another meaning.
inline void require_same_state(const OptimizerConfig& held, const OptimizerConfig& wanted,
                               const std::string& of = "") {
    require(held.kind == wanted.kind, of + "rows hold the state of " + name_of(held.kind) +
                                          ", not of " + name_of(wanted.kind));
    require((held.accumulator_half_life_s == 0) == (wanted.accumulator_half_life_s == 0),
            of + "accumulator_half_life_s cannot be switched on or off while a table lives, only "
                 "changed");
    require(held.kind != OptimizerKind::ftrl || held.beta == wanted.beta,
            of + "beta is " + std::to_string(held.beta) +
                " in the state of the rows and cannot change to " + std::to_string(wanted.beta));
}

}  // namespace freshrank
