// The training table's rows one by one, and with all that is theirs: for people and for files.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>
#include <utility>

#include "bindings.hpp"
#include "bindings_arrays.hpp"
#include "core/table.hpp"

namespace freshrank {

using namespace nb::literals;

namespace {

constexpr const char* state_names[] = {"absent", "pending", "admitted", "expired", "removed"};

nb::dict inspect(const Table& table, const nb::object& number) {
    std::uint64_t id = 0;
    require(nb::try_cast(number, id), "id is " + std::string(nb::repr(number).c_str()) +
                                          "; it must be an int from 0 to 2^64 - 1");
    Inspection found;
    {
        const nb::gil_scoped_release release;
        found = table.inspect(id);
    }
    nb::dict result;
    result["state"] = state_names[static_cast<std::uint32_t>(found.state)];
    result["count"] = found.count;
    result["min_count"] = found.min_count;
    result["last_seen_s"] = found.last_seen_s;
    result["expires_s"] = found.expires_s;
    result["born_s"] = found.born_s;
    result["frequency"] = found.frequency;
    result["version"] = found.version;
    result["weight_norm"] = found.weight_norm;
    result["state_norm"] = found.state_norm;
    return result;
}

nb::tuple rows_from(const Table& table, std::int64_t start, std::int64_t max_rows) {
    const std::uint32_t first = in_range("start", start, 0, 0xffffffffLL);
    const std::uint64_t n_max = not_negative("max_rows", max_rows);
    const std::size_t n_floats = table.config().width() + table.config().n_state();
    Rows rows;
    {
        const nb::gil_scoped_release release;
        rows = table.rows_from(first, n_max);
    }
    const std::size_t n = rows.keys.size();
    return nb::make_tuple(rows.next, adopt(std::move(rows.keys)),
                          adopt(std::move(rows.values), {n, n_floats}),
                          adopt(std::move(rows.versions)), adopt(std::move(rows.last_seen_s)),
                          adopt(std::move(rows.born_s)), adopt(std::move(rows.frequency)));
}

void put_rows(Table& table, const AnyArray& keys, const AnyArray& values,
              const nb::object& versions, const AnyArray& last_seen_s, const AnyArray& born_s,
              const AnyArray& frequency, std::int64_t table_version, std::int64_t clock_s) {
    const IdsInput keys_input("keys", keys);
    const Input<float> values_input("values", values, 2);
    const std::size_t n = keys_input.size();
    check_rows("values", values_input, n, table.config().width() + table.config().n_state());
    const bool is_new = versions.is_none();
    const IdsInput versions_input(
        "versions", is_new ? keys : as<AnyArray>(versions, "versions", "an array or None"));
    same_length("keys", n, "versions", versions_input.size());
    const Input<std::uint32_t> last_seen("last_seen_s", last_seen_s);
    const Input<std::uint32_t> born("born_s", born_s);
    const Input<std::uint32_t> frequency_input("frequency", frequency);
    same_length("keys", n, "last_seen_s", last_seen.size());
    same_length("keys", n, "born_s", born.size());
    same_length("keys", n, "frequency", frequency_input.size());
    const RowsView rows{
        .keys = keys_input.span(),
        .values = values_input.data(),
        .versions = is_new ? Ids{} : versions_input.span(),
        .last_seen_s = last_seen.span(),
        .born_s = born.span(),
        .frequency = frequency_input.span(),
        .table_version = not_negative("table_version", table_version),
        .clock_s = in_range("clock_s", clock_s, 0, max_time_s),
    };
    const nb::gil_scoped_release release;
    table.put_rows(rows);
}

}  // namespace

void bind_rows(nb::class_<Table>& type) {
    type.def("inspect", &inspect, "id"_a)
        .def("rows_from", &rows_from, "start"_a, "max_rows"_a)
        .def("put_rows", &put_rows, "keys"_a, "values"_a, "versions"_a.none(), "last_seen_s"_a,
             "born_s"_a, "frequency"_a, "table_version"_a = 0, "clock_s"_a = 0);
}

}  // namespace freshrank
