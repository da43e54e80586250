#include "step_rows.hpp"

#include <algorithm>

namespace freshrank {

namespace {

// The body of both, inlined into each and so compiled for its instructions.
template <OptimizerKind kind, OptimizerKind other>
[[gnu::always_inline]] inline void step_all(const RowSteps& steps, bool is_split) {
    // Copies, which no store to a row can change: the loop keeps their values in registers.
    const SliceParameters first = steps.slices.front();
    const SliceParameters last = steps.slices.back();
    const bool is_limited = first.is_limited || last.is_limited;
    const std::uint32_t n_behind = steps.n_state == 1 ? 0 : steps.n_state;
    const std::size_t n_bytes = (steps.width + n_behind) * sizeof(float);
    constexpr std::size_t ahead = 16;  // a large batch has pushed its first rows out of the cache
    for (std::size_t n = 0; n < steps.n_rows; ++n) {
        if (n + ahead < steps.n_rows) {
            const std::uint32_t next = steps.rows[n + ahead];
            prefetch({steps.slabs.at(next), n_bytes});
            prefetch(steps.metadata.lines(next));
        }
        const std::uint32_t row = steps.rows[n];
        float* weights = steps.slabs.at(row);
        float* state = steps.state(row, weights);
        const float* gradient = steps.gradients[n];
        if (is_limited) {
            std::copy_n(gradient, steps.width, steps.scratch);
            clip(first, steps.scratch + first.column);
            if (is_split) {
                clip(last, steps.scratch + last.column);
            }
            gradient = steps.scratch;
        }
        step_slice<kind>(first, weights, state, gradient, steps.clock_s);
        if (is_split) {
            step_slice<other>(last, weights, state, gradient, steps.clock_s);
        }
        steps.metadata.set_version(row, steps.version);
    }
}

template <OptimizerKind kind, OptimizerKind other>
void step_portable(const RowSteps& steps) {
    step_all<kind, other>(steps, steps.slices.size() > 1);
}

#if defined(__x86_64__) && defined(__GNUC__)
template <OptimizerKind kind, OptimizerKind other>
[[gnu::target("avx512f,avx512dq,avx512vl")]] void step_avx512(const RowSteps& steps) {
    step_all<kind, other>(steps, steps.slices.size() > 1);
}
#endif

}  // namespace

StepRows portable_steps(std::span<const SliceParameters> slices) {
    StepRows found = nullptr;
    with_kind(slices.front().kind, [&]<OptimizerKind kind>() {
        with_kind(slices.back().kind,
                  [&]<OptimizerKind other>() { found = step_portable<kind, other>; });
    });
    return found;
}

StepRows avx512_steps([[maybe_unused]] std::span<const SliceParameters> slices) {
    StepRows found = nullptr;
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        with_kind(slices.front().kind, [&]<OptimizerKind kind>() {
            with_kind(slices.back().kind,
                      [&]<OptimizerKind other>() { found = step_avx512<kind, other>; });
        });
    }
#endif
    return found;
}

StepRows best_steps(std::span<const SliceParameters> slices) {
    const StepRows wide = avx512_steps(slices);
    return wide != nullptr ? wide : portable_steps(slices);
}

}  // namespace freshrank
