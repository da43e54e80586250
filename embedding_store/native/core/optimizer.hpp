// Birth and one optimizer step of one row, in float32. Formulas and state order: FORMAT.md.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>

#include "config.hpp"
#include "hash.hpp"

namespace freshrank {

// One slice: its place in weights and state, and its optimizer's values as floats, rounded once.
struct SliceParameters {
    explicit SliceParameters(const Slice& slice)
        : kind(slice.optimizer.kind),
          column(slice.column),
          n_columns(slice.n_columns),
          state(slice.state),
          n_state(slice.optimizer.n_state(slice.n_columns)),
          half_life_s(slice.optimizer.accumulator_half_life_s),
          lr(static_cast<float>(slice.optimizer.lr)),
          l1(static_cast<float>(slice.optimizer.l1)),
          l2(static_cast<float>(slice.optimizer.l2)),
          keep(static_cast<float>(1.0 - slice.optimizer.lr * slice.optimizer.weight_decay)),
          eps(static_cast<float>(slice.optimizer.eps)),
          beta(static_cast<float>(slice.optimizer.beta)),
          beta1(static_cast<float>(slice.optimizer.beta1)),
          beta2(static_cast<float>(slice.optimizer.beta2)),
          initial_accumulator(static_cast<float>(slice.optimizer.initial_accumulator)),
          clip_norm(static_cast<float>(slice.optimizer.clip_norm)),
          clip_value(static_cast<float>(slice.optimizer.clip_value)),
          is_limited(clip_norm > 0 || clip_value > 0) {}

    // Of the Adagrads. If they fade, the time at which they last did stands behind them.
    std::uint32_t n_accumulators() const { return n_state - (half_life_s > 0 ? 1 : 0); }

    OptimizerKind kind;
    std::uint32_t column, n_columns, state, n_state, half_life_s;
    float lr, l1, l2, keep, eps, beta, beta1, beta2, initial_accumulator, clip_norm, clip_value;
    bool is_limited;
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

// FTRL-proximal's weight of its two sums, and the sum of which a weight is born. `sum` is the
// paper's z times lr, so that another lr moves the next step, not the weight.
inline float ftrl_weight(const SliceParameters& p, float root, float sum) {
    const float beyond = std::max(std::abs(sum) - p.lr * p.l1, 0.0f);
    return std::copysign(beyond, -sum) / ((p.beta + root) + p.lr * p.l2);
}
inline float ftrl_sum(const SliceParameters& p, float root, float weight) {
    const float beyond = std::abs(weight) * ((p.beta + root) + p.lr * p.l2);
    return weight == 0 ? 0.0f : std::copysign(beyond + p.lr * p.l1, -weight);
}

inline void initialise_state(const SliceParameters& p, const float* weights, float* state) {
    state += p.state;
    std::fill_n(state, p.n_state, 0.0f);
    if (p.kind == OptimizerKind::adagrad || p.kind == OptimizerKind::rowwise_adagrad) {
        std::fill_n(state, p.n_accumulators(), p.initial_accumulator);
    } else if (p.kind == OptimizerKind::ftrl) {
        std::fill_n(state, p.n_columns, p.initial_accumulator);
        const float root = std::sqrt(p.initial_accumulator);
        for (std::uint32_t i = 0; i < p.n_columns; ++i) {
            state[p.n_columns + i] = ftrl_sum(p, root, weights[p.column + i]);
        }
    }
}

// Writes weights and state of a newborn row: nothing of an earlier tenant survives.
inline void initialise_row(const TableConfig& config, std::span<const SliceParameters> slices,
                           std::uint64_t id, float* weights, float* state) {
    for (std::uint32_t column = 0; column < config.dim; ++column) {
        weights[column] = initial_weight(config, id, column);
    }
    if (config.first_order) {
        weights[config.dim] = 0.0f;
    }
    for (const SliceParameters& slice : slices) {
        initialise_state(slice, weights, state);
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

// Each value first, then the whole: in doubles, where no square of a float overflows.
inline void clip(const SliceParameters& p, float* gradient) {
    if (p.clip_value > 0) {
        for (std::uint32_t i = 0; i < p.n_columns; ++i) {
            gradient[i] = std::clamp(gradient[i], -p.clip_value, p.clip_value);
        }
    }
    if (p.clip_norm > 0) {
        double squares = 0;
        for (std::uint32_t i = 0; i < p.n_columns; ++i) {
            squares += double{gradient[i]} * double{gradient[i]};
        }
        const double norm = std::sqrt(squares);
        if (norm > double{p.clip_norm}) {
            const auto scale = static_cast<float>(double{p.clip_norm} / norm);
            for (std::uint32_t i = 0; i < p.n_columns; ++i) {
                gradient[i] *= scale;
            }
        }
    }
}

// Halves what the accumulators gathered above their start once per half-life of event time. A row
// is aged in steps of at least 1/1024 of a half-life: a shorter one would drown in float32's
// rounding, and a busy row's accumulators would never shrink.
inline void age(const SliceParameters& p, float* accumulators, std::uint32_t clock_s) {
    float& aged_bits = accumulators[p.n_accumulators()];
    const auto aged_s = std::bit_cast<std::uint32_t>(aged_bits);
    const std::uint32_t elapsed_s = clock_s - aged_s;
    if (elapsed_s == 0 || elapsed_s < p.half_life_s / 1024) {
        return;
    }
    aged_bits = std::bit_cast<float>(clock_s);
    const double half_lives = static_cast<double>(elapsed_s) / p.half_life_s;
    const auto kept = static_cast<float>(std::exp2(-half_lives));
    for (std::uint32_t i = 0; i < p.n_accumulators(); ++i) {
        accumulators[i] = p.initial_accumulator + (accumulators[i] - p.initial_accumulator) * kept;
    }
}

// When a row was aged last, which must not lie ahead of its table's clock.
inline std::uint32_t aged_s(std::span<const SliceParameters> slices, const float* state) {
    std::uint32_t last_s = 0;
    for (const SliceParameters& p : slices) {
        if (p.half_life_s > 0) {
            const float bits = state[p.state + p.n_accumulators()];
            last_s = std::max(last_s, std::bit_cast<std::uint32_t>(bits));
        }
    }
    return last_s;
}

// Moves the slice's n weights w by their gradient g.
template <OptimizerKind kind>
void step(const SliceParameters& p, std::uint32_t n, float* __restrict w, float* __restrict state,
          const float* __restrict g);

template <>
inline void step<OptimizerKind::sgd>(const SliceParameters& p, std::uint32_t n, float* __restrict w,
                                     float*, const float* __restrict g) {
    for (std::uint32_t i = 0; i < n; ++i) {
        w[i] = p.keep * w[i] - p.lr * (g[i] + p.l2 * w[i]);
    }
}

template <>
inline void step<OptimizerKind::adagrad>(const SliceParameters& p, std::uint32_t n,
                                         float* __restrict w, float* __restrict state,
                                         const float* __restrict g) {
    for (std::uint32_t i = 0; i < n; ++i) {
        const float slope = g[i] + p.l2 * w[i];
        state[i] += slope * slope;
        w[i] = p.keep * w[i] - p.lr * slope / (std::sqrt(state[i]) + p.eps);
    }
}

template <>
inline void step<OptimizerKind::rowwise_adagrad>(const SliceParameters& p, std::uint32_t n,
                                                 float* __restrict w, float* __restrict state,
                                                 const float* __restrict g) {
    *state += sum_of_squares(g, w, p.l2, n) / static_cast<float>(n);
    const float scale = p.lr / (std::sqrt(*state) + p.eps);
    for (std::uint32_t i = 0; i < n; ++i) {
        w[i] = p.keep * w[i] - scale * (g[i] + p.l2 * w[i]);
    }
}

template <>
inline void step<OptimizerKind::adam>(const SliceParameters& p, std::uint32_t n,
                                      float* __restrict w, float* __restrict state,
                                      const float* __restrict g) {
    // First moments, second moments, then the row's own step count (u32 bits in a float).
    float* __restrict second = state + n;
    float& count_bits = state[2 * n];
    const std::uint32_t before = std::bit_cast<std::uint32_t>(count_bits);
    const std::uint32_t n_steps = before + (before == 0xffffffffU ? 0U : 1U);
    count_bits = std::bit_cast<float>(n_steps);
    const auto t = static_cast<double>(n_steps);
    const auto unbias1 = static_cast<float>(1.0 / (1.0 - std::pow(double{p.beta1}, t)));
    const auto unbias2 = static_cast<float>(1.0 / (1.0 - std::pow(double{p.beta2}, t)));
    for (std::uint32_t i = 0; i < n; ++i) {
        const float slope = g[i] + p.l2 * w[i];
        state[i] = p.beta1 * state[i] + (1.0f - p.beta1) * slope;
        second[i] = p.beta2 * second[i] + (1.0f - p.beta2) * slope * slope;
        w[i] =
            p.keep * w[i] - p.lr * (state[i] * unbias1) / (std::sqrt(second[i] * unbias2) + p.eps);
    }
}

template <>
inline void step<OptimizerKind::ftrl>(const SliceParameters& p, std::uint32_t n,
                                      float* __restrict w, float* __restrict state,
                                      const float* __restrict g) {
    float* __restrict sum = state + n;
    for (std::uint32_t i = 0; i < n; ++i) {
        const float before = std::sqrt(state[i]);
        state[i] += g[i] * g[i];
        const float root = std::sqrt(state[i]);
        sum[i] += p.lr * g[i] - (root - before) * w[i];
        w[i] = ftrl_weight(p, root, sum[i]);
    }
}

// The slice's whole step; clipping changes its part of `gradient`. Inlined into the loop over rows,
// where it costs an eighth less than called.
template <OptimizerKind kind>
[[gnu::always_inline]] inline void step_slice(const SliceParameters& p, float* weights,
                                              float* state, float* gradient,
                                              std::uint32_t clock_s) {
    weights += p.column;
    state += p.state;
    float* slope = gradient + p.column;
    if (p.is_limited) {
        clip(p, slope);
    }
    if (p.half_life_s > 0) {
        age(p, state, clock_s);
    }
    if (p.n_columns == 1) {  // compiled without the loop, which would take longer than the step
        step<kind>(p, 1, weights, state, slope);
    } else {
        step<kind>(p, p.n_columns, weights, state, slope);
    }
}

// Calls use() with the kind as a constant, so that what it calls is compiled for each.
template <class Use>
void with_kind(OptimizerKind kind, Use&& use) {
    switch (kind) {
        case OptimizerKind::sgd:
            return use.template operator()<OptimizerKind::sgd>();
        case OptimizerKind::adagrad:
            return use.template operator()<OptimizerKind::adagrad>();
        case OptimizerKind::rowwise_adagrad:
            return use.template operator()<OptimizerKind::rowwise_adagrad>();
        case OptimizerKind::adam:
            return use.template operator()<OptimizerKind::adam>();
        case OptimizerKind::ftrl:
            return use.template operator()<OptimizerKind::ftrl>();
    }
}

}  // namespace freshrank
