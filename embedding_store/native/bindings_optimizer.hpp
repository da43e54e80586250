// embedding_store/optimizer.py's dataclass, to the core and back.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <optional>
#include <string>

#include "core/config.hpp"

namespace freshrank {

namespace nb = nanobind;

template <class T>
T attribute(const nb::object& object, const char* name) {
    T value;
    if (!nb::try_cast(object.attr(name), value)) {
        throw nb::type_error((std::string(name) + " has the wrong type").c_str());
    }
    return value;
}

inline OptimizerConfig optimizer_of(const nb::object& object) {
    if (!nb::hasattr(object, "kind")) {
        throw nb::type_error("optimizer must be an embedding_store.Optimizer");
    }
    const auto number = [&](const char* name) { return attribute<double>(object, name); };
    const OptimizerConfig config{
        .kind = optimizer_named(attribute<std::string>(object, "kind")),
        .accumulator_half_life_s =
            in_range("accumulator_half_life_s",
                     attribute<std::int64_t>(object, "accumulator_half_life_s"), 0, max_time_s),
        .lr = number("lr"),
        .l1 = number("l1"),
        .l2 = number("l2"),
        .weight_decay = number("weight_decay"),
        .eps = number("eps"),
        .beta = number("beta"),
        .beta1 = number("beta1"),
        .beta2 = number("beta2"),
        .initial_accumulator = number("initial_accumulator"),
        .clip_norm = number("clip_norm"),
        .clip_value = number("clip_value")};
    validate(config);
    return config;
}

inline std::optional<OptimizerConfig> optional_optimizer_of(const nb::object& object) {
    return object.is_none() ? std::nullopt : std::optional(optimizer_of(object));
}

inline nb::object object_of(const OptimizerConfig& config) {
    using namespace nb::literals;
    return nb::module_::import_("embedding_store.optimizer")
        .attr("Optimizer")(name_of(config.kind), "lr"_a = config.lr, "l1"_a = config.l1,
                           "l2"_a = config.l2, "weight_decay"_a = config.weight_decay,
                           "eps"_a = config.eps, "beta"_a = config.beta, "beta1"_a = config.beta1,
                           "beta2"_a = config.beta2,
                           "initial_accumulator"_a = config.initial_accumulator,
                           "accumulator_half_life_s"_a = config.accumulator_half_life_s,
                           "clip_norm"_a = config.clip_norm, "clip_value"_a = config.clip_value);
}

inline nb::object object_of(const std::optional<OptimizerConfig>& config) {
    return config ? object_of(*config) : nb::none();
}

}  // namespace freshrank
