// The loop that steps rows, with both instruction sets.
#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include "core/step_rows.hpp"
#include "tests/check.hpp"

namespace freshrank {

namespace {

using testing::check;

constexpr std::uint32_t n_rows = 90;  // of which every third stays as it was born

OptimizerConfig optimizer_of(std::uint32_t kind, bool is_rich) {
    OptimizerConfig optimizer{.kind = static_cast<OptimizerKind>(kind),
                              .lr = 0.05,
                              .eps = 1e-6,
                              .beta = 1,
                              .beta1 = 0.9,
                              .beta2 = 0.99,
                              .initial_accumulator = 0.1};
    if (is_rich) {
        optimizer.l1 = optimizer.kind == OptimizerKind::ftrl ? 0.01 : 0;
        optimizer.l2 = 0.02;
        optimizer.weight_decay = optimizer.kind == OptimizerKind::ftrl ? 0 : 0.1;
        optimizer.accumulator_half_life_s = optimizer.is_adagrad() ? 50 : 0;
        optimizer.clip_norm = 1.5;
        optimizer.clip_value = 1;
    }
    return optimizer;
}

// Rows born and stepped a few times by one of the loops.
class Stepped {
  public:
    Stepped(const TableConfig& config, StepRows (*loop_for)(std::span<const SliceParameters>))
        : config_(config), slabs_(config.width() + config.n_state_behind()), metadata_(nullptr) {
        for (const Slice& slice : config.slices()) {
            slices_.emplace_back(slice);
        }
        slabs_.ensure(n_rows - 1);
        metadata_.ensure(n_rows - 1);
        std::vector<float> scratch(config.width());
        RowSteps steps{.slices = slices_,
                       .slabs = slabs_.view(),
                       .metadata = metadata_,
                       .width = config.width(),
                       .n_state = config.n_state(),
                       .clock_s = 0,
                       .version = 7,
                       .rows = nullptr,
                       .gradients = nullptr,
                       .n_rows = 0,
                       .scratch = scratch.data()};
        for (std::uint32_t row = 0; row < n_rows; ++row) {
            float* weights = slabs_.at(row);
            std::fill_n(weights, slabs_.stride(), -7.0f);
            initialise_row(config, slices_, row, weights, steps.state(row, weights));
        }
        const StepRows step = loop_for(slices_);
        for (std::uint32_t turn = 0; turn < 4; ++turn) {
            take_batch(turn);
            steps.clock_s = 1'000 + 37 * turn;
            steps.rows = rows_.data();
            steps.gradients = pointers_.data();
            steps.n_rows = rows_.size();
            step(steps);
        }
    }

    bool operator==(const Stepped& other) const {
        for (std::uint32_t row = 0; row < n_rows; ++row) {
            const std::size_t n_bytes = slabs_.stride() * sizeof(float);
            if (std::memcmp(slabs_.at(row), other.slabs_.at(row), n_bytes) != 0 ||
                std::memcmp(&metadata_.record(row), &other.metadata_.record(row),
                            sizeof(Metadata::Record)) != 0) {
                return false;
            }
        }
        return true;
    }

    bool has_moved() const {
        for (std::uint32_t row = 0; row < n_rows; ++row) {
            const bool is_start = slabs_.at(row)[0] == initial_weight(config_, row, 0);
            if ((metadata_.version(row) == 7) != (row % 3 != 0) || is_start != (row % 3 == 0)) {
                return false;
            }
        }
        return true;
    }

  private:
    void take_batch(std::uint32_t seed) {
        std::mt19937 random(seed);
        rows_.clear();
        pointers_.clear();
        gradients_.resize(std::size_t{n_rows} * config_.width());
        for (float& value : gradients_) {
            value = static_cast<float>(random()) * 0x1p-31f - 1;
        }
        for (std::uint32_t row = n_rows; row-- > 0;) {
            if (row % 3 != 0) {
                rows_.push_back(row);
                pointers_.push_back(gradients_.data() + std::size_t{row} * config_.width());
            }
        }
    }

    TableConfig config_;
    std::vector<SliceParameters> slices_;
    RowSlabs slabs_;
    Metadata metadata_;
    std::vector<float> gradients_;
    std::vector<std::uint32_t> rows_;
    std::vector<const float*> pointers_;
};

void check_loops(const TableConfig& config) {
    const Stepped portable(config, portable_steps);
    check(portable.has_moved(), "every row of the batches moves, no other one does");
    const std::vector<Slice> slices = config.slices();
    if (avx512_steps(std::vector<SliceParameters>(slices.begin(), slices.end())) != nullptr) {
        check(portable == Stepped(config, avx512_steps), "equal rows, to the last bit");
    }
}

void wide_steps_equal_portable_ones() {
    for (std::uint32_t kind = 0; kind < n_optimizer_kinds; ++kind) {
        for (const bool is_rich : {false, true}) {
            TableConfig config;
            config.init_scale = 0.05;
            config.optimizer = optimizer_of(kind, is_rich);
            for (const std::uint32_t dim : {1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 40, 64}) {
                config.dim = dim;
                check_loops(config);
            }
            config.first_order = true;
            for (std::uint32_t other = 0; other < n_optimizer_kinds; ++other) {
                config.first_order_optimizer = optimizer_of(other, !is_rich);
                check_loops(config);
            }
        }
    }
}

}  // namespace

}  // namespace freshrank

int main() {
    freshrank::wide_steps_equal_portable_ones();
    std::puts("steps tests passed");
}
