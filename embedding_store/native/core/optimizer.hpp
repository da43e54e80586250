// One optimizer step for one row, in float32. Formulas and state order: FORMAT.md.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "config.hpp"
#include "hash.hpp"

namespace freshrank {

// The same hyper-parameters as floats, rounded once.
struct StepParameters {
    explicit StepParameters(const TableConfig& config)
        : dim(config.dim),
          width(config.width()),
          lr(static_cast<float>(config.lr)),
          l2(static_cast<float>(config.l2)),
          eps(static_cast<float>(config.eps)),
          beta1(static_cast<float>(config.beta1)),
          beta2(static_cast<float>(config.beta2)) {}

    std::uint32_t dim, width;
    float lr, l2, eps, beta1, beta2;
};

// Weights of a newborn row: a pure function of (seed, slot, id, column), the same whenever and
// wherever the row is born. 23 bits give odd multiples of 2^-23, exact in float32, and below 1 by
// enough that rounding the product never reaches scale itself.
inline float initial_weight(const TableConfig& config, std::uint64_t id, std::uint32_t column) {
    const std::uint64_t stream = mix64(mix64(config.seed) ^ config.slot);
    const std::uint64_t bits = mix64(mix64(stream ^ id) + column) >> 41;
    const auto odd = static_cast<std::int32_t>(2 * bits + 1) - (1 << 23);
    return static_cast<float>(odd) * 0x1p-23f * static_cast<float>(config.init_scale);
}

// Writes [weights | state] of a newborn row: nothing of an earlier tenant survives.
inline void initialise_row(const TableConfig& config, std::uint64_t id, float* row) {
    for (std::uint32_t column = 0; column < config.dim; ++column) {
        row[column] = initial_weight(config, id, column);
    }
    if (config.first_order) {
        row[config.dim] = 0.0f;
    }
    const bool is_adagrad =
        config.optimizer == Optimizer::adagrad || config.optimizer == Optimizer::rowwise_adagrad;
    const float fill = is_adagrad ? static_cast<float>(config.initial_accumulator) : 0.0f;
    float* state = row + config.width();
    for (std::uint32_t i = 0; i < config.n_state(); ++i) {
        state[i] = fill;
    }
}

// Sum of squares over four fixed lanes: a fixed order that still fills a vector register.
inline float sum_of_squares(const float* gradient, const float* weights, float l2,
                            std::uint32_t n) {
    float lanes[4] = {0, 0, 0, 0};
    std::uint32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        for (std::uint32_t lane = 0; lane < 4; ++lane) {
            const float g = gradient[i + lane] + l2 * weights[i + lane];
            lanes[lane] += g * g;
        }
    }
    for (; i < n; ++i) {
        const float g = gradient[i] + l2 * weights[i];
        lanes[i & 3] += g * g;
    }
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

template <Optimizer kind>
void step(const StepParameters& p, float* __restrict row, const float* __restrict gradient) {
    float* __restrict state = row + p.width;
    if constexpr (kind == Optimizer::sgd) {
        for (std::uint32_t i = 0; i < p.width; ++i) {
            row[i] -= p.lr * (gradient[i] + p.l2 * row[i]);
        }
    } else if constexpr (kind == Optimizer::adagrad) {
        for (std::uint32_t i = 0; i < p.width; ++i) {
            const float g = gradient[i] + p.l2 * row[i];
            state[i] += g * g;
            row[i] -= p.lr * g / (std::sqrt(state[i]) + p.eps);
        }
    } else if constexpr (kind == Optimizer::rowwise_adagrad) {
        if (p.dim > 0) {
            *state += sum_of_squares(gradient, row, p.l2, p.dim) / static_cast<float>(p.dim);
            const float scale = p.lr / (std::sqrt(*state) + p.eps);
            for (std::uint32_t i = 0; i < p.dim; ++i) {
                row[i] -= scale * (gradient[i] + p.l2 * row[i]);
            }
            ++state;
        }
        if (p.width > p.dim) {
            const float g = gradient[p.dim] + p.l2 * row[p.dim];
            *state += g * g;
            row[p.dim] -= p.lr * g / (std::sqrt(*state) + p.eps);
        }
    } else {
        // First moments, second moments, then the row's own step count (u32 bits in a float).
        float* __restrict second = state + p.width;
        float& count_bits = state[2 * p.width];
        const std::uint32_t before = std::bit_cast<std::uint32_t>(count_bits);
        const std::uint32_t n_steps = before + (before == 0xffffffffU ? 0U : 1U);
        count_bits = std::bit_cast<float>(n_steps);
        const auto t = static_cast<double>(n_steps);
        const auto unbias1 = static_cast<float>(1.0 / (1.0 - std::pow(double{p.beta1}, t)));
        const auto unbias2 = static_cast<float>(1.0 / (1.0 - std::pow(double{p.beta2}, t)));
        for (std::uint32_t i = 0; i < p.width; ++i) {
            const float g = gradient[i] + p.l2 * row[i];
            state[i] = p.beta1 * state[i] + (1.0f - p.beta1) * g;
            second[i] = p.beta2 * second[i] + (1.0f - p.beta2) * g * g;
            row[i] -= p.lr * (state[i] * unbias1) / (std::sqrt(second[i] * unbias2) + p.eps);
        }
    }
}

}  // namespace freshrank
