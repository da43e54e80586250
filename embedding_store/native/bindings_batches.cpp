// Batches through the training table: counted, read, and their gradients learned.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "bindings_arrays.hpp"
#include "bindings_bags.hpp"
#include "core/table.hpp"

namespace freshrank {

using namespace nb::literals;

namespace {

nb::object lookup_or_admit(Table& table, const AnyArray& ids, const AnyArray& counts,
                           std::int64_t now_s, const nb::object& out) {
    const IdsInput ids_input("ids", ids);
    const Input<std::uint32_t> counts_input("counts", counts);
    same_length("ids", ids_input.size(), "counts", counts_input.size());
    const std::uint32_t time_s = event_time(now_s);
    const Output output(out, ids_input.size(), table.config().width());
    {
        const nb::gil_scoped_release release;
        table.lookup_or_admit(ids_input.span(), counts_input.span(), time_s, output.data);
    }
    return output.object;
}

// The arrays of one slot's bags, and that they fit together.
struct BagsInput {
    BagsInput(const nb::tuple& slot, std::size_t n_rows, std::size_t n_slots)
        : of(as<AnyArray>(slot[1], "a slot's ids", "an array"),
             as<AnyArray>(slot[2], "a slot's offsets", "an array"),
             as<std::string>(slot[4], "a slot's mode", "a str"),
             as<std::int64_t>(slot[5], "a slot's first_n", "an int")),
          is_counted("is_counted", as<AnyArray>(slot[3], "a slot's is_counted", "an array")) {
        const auto at = as<std::size_t>(slot[0], "a slot's number", "an int from 0");
        require(at < n_slots,
                "slot " + std::to_string(at) + " of " + std::to_string(n_slots) + " slots");
        same_length("offsets without the first", of.bags().size(), "requests", n_rows);
        same_length("is_counted", is_counted.size(), "requests", n_rows);
        bags = {.of = of.bags(), .is_counted = is_counted.span(), .slot = at};
    }

    IdBagsInput of;
    Input<bool> is_counted;
    Bags bags;
};

void read(Table& table, const nb::list& slots, const AnyArray& requests, std::int64_t now_s,
          const nb::object& out) {
    const Input<std::uint64_t> requests_input("requests", requests);
    const std::uint32_t time_s = event_time(now_s);
    const std::size_t n_rows = requests_input.size();
    const auto array = writable(out);
    if (array.ndim() != 3 || array.shape(0) != n_rows || array.shape(2) != table.config().width() ||
        !is_contiguous(array)) {
        throw nb::value_error(("out must be C-contiguous with shape [" + std::to_string(n_rows) +
                               ", slots, " + std::to_string(table.config().width()) +
                               "], its shape is " + shape_of(array))
                                  .c_str());
    }
    std::deque<BagsInput> inputs;  // keeps the arrays: their addresses must stay
    std::vector<Bags> bags;
    for (const nb::handle handle : slots) {
        const auto slot = as<nb::tuple>(handle, "a slot", "a tuple");
        // Indexing a tuple checks nothing.
        require(slot.size() == 6,
                "a slot is (number, ids, offsets, is_counted, mode, first_n), not " +
                    std::to_string(slot.size()) + " entries");
        inputs.emplace_back(slot, n_rows, array.shape(1));
        bags.push_back(inputs.back().bags);
    }
    const nb::gil_scoped_release release;
    table.read(bags, requests_input.span(), time_s, array.shape(1),
               static_cast<float*>(array.data()));
}

NumpyArray<float> lookup_pooled(const Table& table, const AnyArray& ids, const AnyArray& offsets,
                                const std::string& mode, std::int64_t first_n) {
    const IdBagsInput input(ids, offsets, mode, first_n);
    auto out = new_array<float>({input.bags().size(), table.config().width()});
    float* data = out.data();
    const nb::gil_scoped_release release;
    table.lookup_pooled(input.bags(), data);
    return out;
}

std::uint64_t apply_pooled(Table& table, const AnyArray& ids, const AnyArray& offsets,
                           const AnyArray& gradients, const std::string& mode,
                           std::int64_t first_n) {
    const IdBagsInput bags(ids, offsets, mode, first_n);
    const Input<float> input("gradients", gradients, 2);
    check_rows("gradients", input, bags.bags().size(), table.config().width());
    const nb::gil_scoped_release release;
    return table.apply_pooled(bags.bags(), input.data());
}

}  // namespace

void bind_batches(nb::class_<Table>& type) {
    type.def(
            "lookup",
            [](const Table& table, const AnyArray& ids, const nb::object& out) {
                const IdsInput input("ids", ids);
                const Output output(out, input.size(), table.config().width());
                {
                    const nb::gil_scoped_release release;
                    table.lookup(input.span(), output.data);
                }
                return output.object;
            },
            "ids"_a, "out"_a = nb::none())
        .def("lookup_or_admit", &lookup_or_admit, "ids"_a, "counts"_a, "now_s"_a,
             "out"_a = nb::none())
        .def(
            "apply",
            [](Table& table, const AnyArray& ids, const AnyArray& gradients) {
                const IdsInput ids_input("ids", ids);
                const Input<float> input("gradients", gradients, 2);
                check_rows("gradients", input, ids_input.size(), table.config().width());
                const nb::gil_scoped_release release;
                return table.apply(ids_input.span(), input.data());
            },
            "ids"_a, "gradients"_a)
        .def("lookup_pooled", &lookup_pooled, "ids"_a, "offsets"_a, "mode"_a, "first_n"_a = 0)
        .def("apply_pooled", &apply_pooled, "ids"_a, "offsets"_a, "gradients"_a, "mode"_a,
             "first_n"_a = 0)
        .def("read", &read, "slots"_a, "requests"_a, "now_s"_a, "out"_a)
        .def(
            "learn",
            [](Table& table, const AnyArray& gradients) {
                const Input<float> input("gradients", gradients, 3);
                same_length("gradients' last axis", input.shape(2), "the table's rows",
                            table.config().width());
                const nb::gil_scoped_release release;
                return table.learn(input.shape(0), input.shape(1), input.data());
            },
            "gradients"_a);
}

}  // namespace freshrank
