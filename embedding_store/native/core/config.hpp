// What a table is told once, and the checks that apply to it, from Python or from a snapshot.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "errors.hpp"

namespace freshrank {

enum class Optimizer : std::uint32_t { sgd = 0, adagrad = 1, rowwise_adagrad = 2, adam = 3 };
inline constexpr std::uint32_t n_optimizers = 4;

// What may change while a table lives: it decides what happens next, not what rows mean.
struct Policy {
    double lr = 0;
    double l2 = 0;
    double probability = 1;
    std::uint32_t min_count = 1;
    std::uint32_t ttl_s = 0;
};

struct TableConfig {
    std::uint32_t dim = 0;
    bool first_order = false;
    Optimizer optimizer = Optimizer::sgd;
    std::uint32_t slot = 0;
    double lr = 0;
    double l2 = 0;
    double eps = 0;
    double beta1 = 0;
    double beta2 = 0;
    double initial_accumulator = 0;
    double init_scale = 0;
    double probability = 1;
    std::uint64_t seed = 0;
    std::uint32_t min_count = 1;
    std::uint32_t ttl_s = 0;

    std::uint32_t width() const { return dim + (first_order ? 1 : 0); }

    // Floats of optimizer state behind the weights; their order is in FORMAT.md.
    std::uint32_t n_state() const {
        switch (optimizer) {
            case Optimizer::sgd:
                return 0;
            case Optimizer::adagrad:
                return width();
            case Optimizer::rowwise_adagrad:
                return (dim > 0 ? 1U : 0U) + (first_order ? 1U : 0U);
            case Optimizer::adam:
                return 2 * width() + 1;
        }
        return 0;
    }
};

inline constexpr std::uint32_t max_dim = 16384;
inline constexpr std::uint32_t max_min_count = 65536;

inline constexpr const char* optimizer_names[] = {"sgd", "adagrad", "rowwise_adagrad", "adam"};

inline const char* name_of(Optimizer optimizer) {
    return optimizer_names[static_cast<std::uint32_t>(optimizer)];
}

inline Optimizer optimizer_named(std::string_view name) {
    for (std::uint32_t i = 0; i < n_optimizers; ++i) {
        if (optimizer_names[i] == name) {
            return static_cast<Optimizer>(i);
        }
    }
    throw StoreError("optimizer is '" + std::string(name) +
                     "'; it must be sgd, adagrad, rowwise_adagrad or adam");
}

// An integer that came as Python's int or a file's field, brought to 32 bits or refused by name.
inline std::uint32_t in_range(std::string_view name, std::int64_t value, std::int64_t low,
                              std::int64_t high) {
    require(value >= low && value <= high, std::string(name) + " is " + std::to_string(value) +
                                               "; it must be from " + std::to_string(low) + " to " +
                                               std::to_string(high));
    return static_cast<std::uint32_t>(value);
}

inline void validate(const TableConfig& config) {
    // Arithmetic is in float32, so a value must survive the way there; NaN where it does not.
    const auto as_float = [](double value) {
        return std::abs(value) <= double{std::numeric_limits<float>::max()}
                   ? static_cast<float>(value)
                   : std::numeric_limits<float>::quiet_NaN();
    };
    const auto check = [&](const char* name, double value, bool good, const char* rule) {
        require(good && !std::isnan(as_float(value)),
                std::string(name) + " is " + std::to_string(value) + "; it must be " + rule);
    };
    in_range("dim", config.dim, 0, max_dim);
    require(config.width() > 0,
            "dim is 0 and first_order is off: a row would hold nothing; set one of them");
    in_range("min_count", config.min_count, 1, max_min_count);
    check("lr", config.lr, config.lr >= 0, "finite and not negative");
    check("l2", config.l2, config.l2 >= 0, "finite and not negative");
    // eps keeps a row whose accumulator is zero from dividing zero by zero.
    check("eps", config.eps,
          config.optimizer == Optimizer::sgd ? config.eps >= 0 : as_float(config.eps) > 0,
          config.optimizer == Optimizer::sgd ? "finite and not negative" : "finite and above 0");
    check("beta1", config.beta1, config.beta1 >= 0 && as_float(config.beta1) < 1,
          "at least 0 and below 1");
    check("beta2", config.beta2, config.beta2 >= 0 && as_float(config.beta2) < 1,
          "at least 0 and below 1");
    check("initial_accumulator", config.initial_accumulator, config.initial_accumulator >= 0,
          "finite and not negative");
    check("init_scale", config.init_scale, config.init_scale >= 0, "finite and not negative");
    check("probability", config.probability, config.probability > 0 && config.probability <= 1,
          "above 0 and at most 1");
}

}  // namespace freshrank
