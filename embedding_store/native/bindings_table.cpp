// The training table but for its batches: parameters, expiry, versions, snapshots, questions.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "bindings_arrays.hpp"
#include "bindings_optimizer.hpp"
#include "core/table.hpp"

namespace freshrank {

using namespace nb::literals;

namespace {

void construct(Table* self, std::int64_t dim, bool first_order, const nb::object& optimizer,
               const nb::object& first_order_optimizer, double init_scale, std::uint64_t seed,
               std::int64_t slot, std::int64_t min_count, double probability, std::int64_t ttl_s,
               std::int64_t initial_rows, std::int64_t max_bytes, std::int64_t pending_bytes,
               std::int64_t min_rows, std::int64_t count_half_life_s,
               std::shared_ptr<Budget> budget) {
    TableConfig config;
    config.dim = in_range("dim", dim, 0, max_dim);
    config.first_order = first_order;
    config.optimizer = optimizer_of(optimizer);
    config.first_order_optimizer = optional_optimizer_of(first_order_optimizer);
    config.init_scale = init_scale;
    config.seed = seed;
    config.slot = in_range("slot", slot, 0, 0xffffffffLL);
    config.min_count = in_range("min_count", min_count, 1, max_min_count);
    config.probability = probability;
    config.ttl_s = in_range("ttl_s", ttl_s, 0, max_time_s);
    const std::uint64_t n_rows = not_negative("initial_rows", initial_rows);
    config.limits.max_bytes = not_negative("max_bytes", max_bytes);
    config.limits.pending_bytes = not_negative("pending_bytes", pending_bytes);
    config.limits.min_rows = not_negative("min_rows", min_rows);
    config.limits.count_half_life_s =
        in_range("count_half_life_s", count_half_life_s, 0, max_time_s);
    new (self) Table(config, n_rows, std::move(budget));
}

// What is not given stays.
void configure(Table& table, const nb::object& optimizer, const nb::object& first_order_optimizer,
               std::optional<std::int64_t> min_count, std::optional<double> probability,
               std::optional<std::int64_t> ttl_s, std::optional<std::int64_t> min_rows,
               std::optional<std::int64_t> count_half_life_s) {
    Policy policy = table.policy();
    policy.probability = probability.value_or(policy.probability);
    if (!optimizer.is_none()) {
        policy.optimizer = optimizer_of(optimizer);
    }
    if (first_order_optimizer.ptr() != Py_Ellipsis) {
        policy.first_order_optimizer = optional_optimizer_of(first_order_optimizer);
    }
    if (min_count) {
        policy.min_count = in_range("min_count", *min_count, 1, max_min_count);
    }
    if (ttl_s) {
        policy.ttl_s = in_range("ttl_s", *ttl_s, 0, max_time_s);
    }
    if (min_rows) {
        policy.min_rows = not_negative("min_rows", *min_rows);
    }
    if (count_half_life_s) {
        policy.count_half_life_s = in_range("count_half_life_s", *count_half_life_s, 0, max_time_s);
    }
    table.configure(policy);  // under the interpreter lock: nobody changes what was just read
}

// One array in, one array of n values out, the core called without the interpreter lock.
template <class T>
auto by_id(void (Table::*query)(Ids, T*) const) {
    return [query](const Table& table, const AnyArray& ids) {
        const IdsInput input("ids", ids);
        auto out = new_array<T>({input.size()});
        T* data = out.data();
        const nb::gil_scoped_release release;
        (table.*query)(input.span(), data);
        return out;
    };
}

NumpyArray<bool> contains(const Table& table, const AnyArray& ids) {
    const IdsInput input("ids", ids);
    auto out = new_array<bool>({input.size()});
    std::uint8_t* data = bytes_of(out);
    const nb::gil_scoped_release release;
    table.contains(input.span(), data);
    return out;
}

nb::tuple delta(const Table& table, std::int64_t since) {
    const std::uint64_t version = not_negative("since", since);
    Delta changes;
    {
        const nb::gil_scoped_release release;
        changes = table.delta(version);
    }
    const std::size_t n = changes.keys.size();
    return nb::make_tuple(adopt(std::move(changes.keys)),
                          adopt(std::move(changes.rows), {n, table.config().width()}),
                          adopt(std::move(changes.tombstones)));
}

nb::dict statistics(const Table& table) {
    Statistics values{};
    {
        const nb::gil_scoped_release release;
        values = table.statistics();
    }
    nb::dict result;
    result["rows"] = values.rows;
    result["capacity"] = values.capacity;
    result["pending"] = values.pending;
    result["admitted"] = values.admitted;
    result["filtered"] = values.filtered;
    result["expired"] = values.expired;
    result["erased"] = values.erased;
    result["tombstones"] = values.tombstones;
    result["bytes"] = values.bytes;
    result["clock_s"] = values.clock_s;
    result["evicted"] = values.evicted;
    result["sketch_admitted"] = values.sketch_admitted;
    result["threshold"] = values.threshold;
    result["peak_bytes"] = values.peak_bytes;
    result["budget_bytes"] = values.budget_bytes;
    result["max_rows"] = values.max_rows;
    result["snapshot_bytes"] = values.snapshot_bytes;
    return result;
}

void bind_parameters(nb::class_<Table>& type) {
    type.def("__init__", &construct, nb::kw_only(), "dim"_a, "first_order"_a = false, "optimizer"_a,
             "first_order_optimizer"_a = nb::none(), "init_scale"_a = 0.01, "seed"_a = 0,
             "slot"_a = 0, "min_count"_a = 1, "probability"_a = 1.0, "ttl_s"_a = 0,
             "initial_rows"_a = 0, "max_bytes"_a = 0, "pending_bytes"_a = 0, "min_rows"_a = 0,
             "count_half_life_s"_a = 0, "budget"_a = nb::none())
        .def_prop_ro("width", [](const Table& table) { return table.config().width(); })
        .def_prop_ro("dim", [](const Table& table) { return table.config().dim; })
        .def_prop_rw(
            "threads", [](const Table& table) { return table.n_threads(); },
            [](Table& table, std::int64_t n) {
                table.set_threads(in_range("threads", n, 1, max_threads));
            },
            nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("seed", [](const Table& table) { return table.config().seed; })
        .def_prop_ro("slot", [](const Table& table) { return table.config().slot; })
        .def_prop_ro("max_bytes",
                     [](const Table& table) { return table.config().limits.max_bytes; })
        .def_prop_ro("pending_bytes",
                     [](const Table& table) { return table.config().limits.pending_bytes; })
        .def_prop_ro("min_count", [](const Table& table) { return table.policy().min_count; })
        .def_prop_ro("probability", [](const Table& table) { return table.policy().probability; })
        .def_prop_ro("ttl_s", [](const Table& table) { return table.policy().ttl_s; })
        .def_prop_ro("min_rows", [](const Table& table) { return table.policy().min_rows; })
        .def_prop_ro("count_half_life_s",
                     [](const Table& table) { return table.policy().count_half_life_s; })
        .def_prop_ro("optimizer",
                     [](const Table& table) { return object_of(table.policy().optimizer); })
        .def_prop_ro(
            "first_order_optimizer",
            [](const Table& table) { return object_of(table.policy().first_order_optimizer); })
        .def("configure", &configure, nb::kw_only(), "optimizer"_a = nb::none(),
             nb::arg("first_order_optimizer").none() = nb::ellipsis(), "min_count"_a = nb::none(),
             "probability"_a = nb::none(), "ttl_s"_a = nb::none(), "min_rows"_a = nb::none(),
             "count_half_life_s"_a = nb::none());
}

void bind_questions(nb::class_<Table>& type) {
    type.def("contains", &contains, "ids"_a)
        .def("pending", by_id<std::uint32_t>(&Table::pending), "ids"_a)
        .def("born_s", by_id<std::uint32_t>(&Table::born_s), "ids"_a)
        .def("last_seen_s", by_id<std::uint32_t>(&Table::last_seen_s), "ids"_a)
        .def("keys",
             [](const Table& table) {
                 std::vector<std::uint64_t> keys;
                 {
                     const nb::gil_scoped_release release;
                     keys = table.keys();
                 }
                 return adopt(std::move(keys));
             })
        .def("statistics", &statistics)
        .def("__len__", &Table::size, nb::call_guard<nb::gil_scoped_release>());
}

void bind_changes(nb::class_<Table>& type) {
    type.def(
            "expire",
            [](Table& table, std::int64_t now_s, std::int64_t max_rows) {
                const std::uint32_t time_s = event_time(now_s);
                const std::uint64_t n_max = not_negative("max_rows", max_rows);
                const nb::gil_scoped_release release;
                return table.expire(time_s, n_max);
            },
            "now_s"_a, "max_rows"_a)
        .def(
            "erase",
            [](Table& table, const AnyArray& ids) {
                const IdsInput input("ids", ids);
                const nb::gil_scoped_release release;
                return table.erase(input.span());
            },
            "ids"_a)
        .def_prop_ro("version", &Table::version, nb::call_guard<nb::gil_scoped_release>())
        .def("advance", &Table::advance, nb::call_guard<nb::gil_scoped_release>())
        .def("delta", &delta, "since"_a)
        .def(
            "trim_tombstones",
            [](Table& table, std::int64_t through) {
                const std::uint64_t version = not_negative("through", through);
                const nb::gil_scoped_release release;
                return table.trim_tombstones(version);
            },
            "through"_a);
}

}  // namespace

void bind_table(nb::module_& m) {
    m.def("check_optimizer", [](const nb::object& optimizer) { optimizer_of(optimizer); });
    nb::class_<Table> type(m, "Table");
    bind_parameters(type);
    bind_batches(type);
    bind_questions(type);
    bind_changes(type);
    bind_rows(type);
    bind_snapshots(m, type);
}

}  // namespace freshrank
