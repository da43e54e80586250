// Python's view of the serving table.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <vector>

#include "bindings.hpp"
#include "bindings_arrays.hpp"
#include "core/serving.hpp"

namespace freshrank {

using namespace nb::literals;

namespace {}  // namespace

void bind_serving_table(nb::module_& m) {
    nb::class_<ServingTable>(m, "ServingTable")
        .def(
            "__init__",
            [](ServingTable* self, std::int64_t width, std::int64_t initial_rows) {
                new (self) ServingTable(in_range("width", width, 1, max_dim + 1),
                                        not_negative("initial_rows", initial_rows));
            },
            nb::kw_only(), "width"_a, "initial_rows"_a)
        .def_prop_ro("width", &ServingTable::width)
        .def(
            "lookup",
            [](const ServingTable& table, const AnyArray& ids, const nb::object& out) {
                const IdsInput input("ids", ids);
                const Output output(out, input.size(), table.width());
                auto found = new_array<std::uint8_t>({input.size()});
                std::uint8_t* found_data = found.data();
                {
                    const nb::gil_scoped_release release;
                    table.lookup(input.span(), output.data, found_data);
                }
                return nb::make_tuple(output.object, found);
            },
            "ids"_a, "out"_a = nb::none())
        .def(
            "upsert",
            [](ServingTable& table, const AnyArray& keys, const AnyArray& rows) {
                const IdsInput keys_input("keys", keys);
                const Input<float> input("rows", rows, 2);
                check_rows("rows", input, keys_input.size(), table.width());
                const nb::gil_scoped_release release;
                table.upsert(keys_input.span(), input.data());
            },
            "keys"_a, "rows"_a)
        .def(
            "remove",
            [](ServingTable& table, const AnyArray& keys) {
                const IdsInput input("keys", keys);
                const nb::gil_scoped_release release;
                return table.remove(input.span());
            },
            "keys"_a)
        .def("keys",
             [](const ServingTable& table) {
                 std::vector<std::uint64_t> keys;
                 {
                     const nb::gil_scoped_release release;
                     keys = table.keys();
                 }
                 return adopt(std::move(keys));
             })
        .def("__len__", &ServingTable::size, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("nbytes", &ServingTable::n_bytes, nb::call_guard<nb::gil_scoped_release>());
}
}  // namespace freshrank
