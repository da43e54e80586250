// Python's view of the serving table.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "bindings_arrays.hpp"
#include "bindings_bags.hpp"
#include "core/serving.hpp"

namespace freshrank {

using namespace nb::literals;

namespace {

nb::dict statistics(const ServingTable& table) {
    ServingTable::Statistics values{};
    {
        const nb::gil_scoped_release release;
        values = table.statistics();
    }
    nb::dict result;
    result["rows"] = values.rows;
    result["capacity"] = values.capacity;
    result["bytes"] = values.bytes;
    result["index_bytes"] = values.index_bytes;
    result["row_bytes"] = values.row_bytes;
    return result;
}

// Keys and a row for each, handed to a method of the core without the interpreter lock.
auto with_rows(auto method) {
    return [method](ServingTable& table, const AnyArray& keys, const AnyArray& rows) {
        const IdsInput keys_input("keys", keys);
        const Input<float> input("rows", rows, 2);
        check_rows("rows", input, keys_input.size(), table.width());
        const nb::gil_scoped_release release;
        (table.*method)(keys_input.span(), input.data());
    };
}

nb::tuple lookup_pooled(const ServingTable& table, const AnyArray& ids, const AnyArray& offsets,
                        const std::string& mode, std::int64_t first_n) {
    const IdBagsInput input(ids, offsets, mode, first_n);
    auto out = new_array<float>({input.bags().size(), table.width()});
    auto n_found = new_array<std::uint32_t>({input.bags().size()});
    float* data = out.data();
    std::uint32_t* n_found_data = n_found.data();
    {
        const nb::gil_scoped_release release;
        table.lookup_pooled(input.bags(), data, n_found_data);
    }
    return nb::make_tuple(out, n_found);
}

}  // namespace

void bind_serving_table(nb::module_& m) {
    nb::class_<ServingTable>(m, "ServingTable")
        .def(
            "__init__",
            [](ServingTable* self, std::int64_t width, std::int64_t initial_rows,
               const std::string& dtype) {
                new (self)
                    ServingTable(in_range("width", width, 1, max_dim + 1),
                                 not_negative("initial_rows", initial_rows), row_type_named(dtype));
            },
            nb::kw_only(), "width"_a, "initial_rows"_a = 0, "dtype"_a = "float32")
        .def_prop_ro("width", &ServingTable::width)
        .def_prop_ro("dtype", [](const ServingTable& table) { return name_of(table.type()); })
        .def(
            "lookup",
            [](const ServingTable& table, const AnyArray& ids, const nb::object& out) {
                const IdsInput input("ids", ids);
                const Output output(out, input.size(), table.width());
                auto found = new_array<bool>({input.size()});
                std::uint8_t* found_data = bytes_of(found);
                {
                    const nb::gil_scoped_release release;
                    table.lookup(input.span(), output.data, found_data);
                }
                return nb::make_tuple(output.object, found);
            },
            "ids"_a, "out"_a = nb::none())
        .def("lookup_pooled", &lookup_pooled, "ids"_a, "offsets"_a, "mode"_a, "first_n"_a = 0)
        .def("check", with_rows(&ServingTable::check), "keys"_a, "rows"_a)
        .def("upsert", with_rows(&ServingTable::upsert), "keys"_a, "rows"_a)
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
        .def("statistics", &statistics)
        .def_prop_ro(
            "nbytes", [](const ServingTable& table) { return table.statistics().bytes; },
            nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace freshrank
