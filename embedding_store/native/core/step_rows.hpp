// The loop that moves the rows of a batch, each by its own gradient: once portable and once for
// AVX-512, chosen at run time. Both do the same float32 operations in the same order, so that a row
// comes out the same to the last bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "metadata.hpp"
#include "optimizer.hpp"
#include "pool.hpp"

namespace freshrank {

struct RowSteps {
    std::span<const SliceParameters> slices;  // one or two
    RowSlabs::View slabs;
    Metadata& metadata;
    std::uint32_t width;
    std::uint32_t n_state;
    std::uint32_t clock_s;
    std::uint32_t version;          // stamped on every row
    const std::uint32_t* rows;      // distinct
    const float* const* gradients;  // one of `width` floats for each row
    std::size_t n_rows;
    float* scratch;  // `width` floats, for gradients on their way to a limit

    // The row's state: behind its weights, or its metadata's where it is a single float.
    float* state(std::uint32_t row, float* weights) const {
        return n_state == 1 ? &metadata.record(row).state : weights + width;
    }
};

using StepRows = void (*)(const RowSteps& steps);
// For rows of these slices and their n columns.
StepRows portable_steps(std::span<const SliceParameters> slices);
StepRows avx512_steps(std::span<const SliceParameters> slices);  // null where it is not to be had
StepRows best_steps(std::span<const SliceParameters> slices);

}  // namespace freshrank
