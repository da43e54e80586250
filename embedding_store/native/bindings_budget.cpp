// Python's view of a budget that tables share.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "bindings.hpp"
#include "bindings_arrays.hpp"
#include "core/budget.hpp"

namespace freshrank {

using namespace nb::literals;

void bind_budget(nb::module_& m) {
    nb::class_<Budget>(m, "Budget")
        .def(
            "__init__",
            [](Budget* self, std::int64_t max_bytes, std::shared_ptr<Budget> within) {
                new (self) Budget(not_negative("max_bytes", max_bytes), std::move(within));
            },
            "max_bytes"_a, "within"_a = nb::none())
        .def_prop_ro("max_bytes", &Budget::max_bytes)
        .def_prop_ro("used_bytes", &Budget::used_bytes);
}

}  // namespace freshrank
