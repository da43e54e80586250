// The only file that knows Python: checks arrays, releases the interpreter lock, calls the core.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "bind_optimizer.hpp"
#include "core/serving.hpp"
#include "core/table.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace freshrank {
namespace {

using AnyArray = nb::ndarray<nb::ro, nb::device::cpu>;

template <class T>
using NumpyArray = nb::ndarray<nb::numpy, T>;

std::string shape_of(const auto& array) {
    std::string text = "[";
    for (std::size_t i = 0; i < array.ndim(); ++i) {
        text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
    }
    return text + "]";
}

template <class T>
const char* name_of() {
    if constexpr (std::is_same_v<T, std::uint64_t>) {
        return "uint64";
    } else if constexpr (std::is_same_v<T, std::uint32_t>) {
        return "uint32";
    } else if constexpr (std::is_same_v<T, std::int64_t>) {
        return "int64";
    } else if constexpr (std::is_same_v<T, bool>) {
        return "bool";
    } else {
        return "float32";
    }
}

bool is_contiguous(const auto& array) {
    std::int64_t expected = 1;
    for (std::size_t i = array.ndim(); i-- > 0;) {
        if (array.shape(i) != 1 && array.stride(i) != expected) {
            return array.size() == 0;
        }
        expected *= static_cast<std::int64_t>(array.shape(i));
    }
    return true;
}

// An input array as contiguous values: borrowed where it is, copied where it is strided.
// Another dtype is refused: converting ids through float64 or int64 would change them silently.
template <class T>
class Input {
  public:
    Input(const char* name, const AnyArray& array, std::size_t n_dims = 1) : array_(array) {
        if (array.dtype() != nb::dtype<T>()) {
            throw nb::type_error((std::string(name) + " must have dtype " + name_of<T>()).c_str());
        }
        if (array.ndim() != n_dims) {
            throw nb::value_error((std::string(name) + " must have " + std::to_string(n_dims) +
                                   " dimension(s), its shape is " + shape_of(array))
                                      .c_str());
        }
        require(array.ndim() <= 2 || is_contiguous(array),
                std::string(name) + " must be C-contiguous");
        if (is_contiguous(array)) {
            data_ = static_cast<const T*>(array.data());
        } else {
            copy_strided();
        }
    }
    Input(const Input&) = delete;
    Input& operator=(const Input&) = delete;

    const T* data() const { return data_; }
    std::size_t size() const { return array_.size(); }
    std::size_t shape(std::size_t dim) const { return array_.shape(dim); }
    std::span<const T> span() const { return {data_, size()}; }

  private:
    void copy_strided() {
        const auto* from = static_cast<const T*>(array_.data());
        const std::size_t n_columns = array_.ndim() == 2 ? array_.shape(1) : 1;
        const std::int64_t column_stride = array_.ndim() == 2 ? array_.stride(1) : 0;
        copy_ = std::make_unique_for_overwrite<T[]>(array_.size());
        T* to = copy_.get();
        for (std::size_t row = 0; row < array_.shape(0); ++row) {
            for (std::size_t column = 0; column < n_columns; ++column) {
                *to++ = from[static_cast<std::int64_t>(row) * array_.stride(0) +
                             static_cast<std::int64_t>(column) * column_stride];
            }
        }
        data_ = copy_.get();
    }

    AnyArray array_;
    std::unique_ptr<T[]> copy_;
    const T* data_ = nullptr;
};

using IdsInput = Input<std::uint64_t>;

template <class T>
NumpyArray<T> new_array(std::initializer_list<std::size_t> shape) {
    std::size_t n = 1;
    for (const std::size_t length : shape) {
        n *= length;
    }
    // On cache lines: rows of whole lines are then written without touching a second one.
    constexpr std::align_val_t alignment{line_bytes};
    void* data = ::operator new(n * sizeof(T), alignment);
    const nb::capsule owner(data, [](void* p) noexcept { ::operator delete(p, alignment); });
    return NumpyArray<T>(data, shape, owner);
}

template <class T>
NumpyArray<T> adopt(std::vector<T>&& values, std::initializer_list<std::size_t> shape) {
    auto holder = std::make_unique<std::vector<T>>(std::move(values));
    T* data = holder->data();
    const nb::capsule owner(holder.release(),
                            [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return NumpyArray<T>(data, shape, owner);
}

template <class T>
NumpyArray<T> adopt(std::vector<T>&& values) {
    const std::size_t n = values.size();
    return adopt(std::move(values), {n});
}

nb::ndarray<nb::device::cpu> writable(const nb::object& out) {
    nb::ndarray<nb::device::cpu> array;
    if (!nb::try_cast(out, array, false) || array.dtype() != nb::dtype<float>()) {
        throw nb::type_error("out must be a writable float32 array");
    }
    return array;
}

// Where a lookup writes: the caller's array, which must fit exactly, or a new one.
struct Output {
    Output(const nb::object& out, std::size_t n, std::size_t width) {
        if (out.is_none()) {
            object = new_array<float>({n, width}).cast();
            data = nb::cast<nb::ndarray<float, nb::c_contig>>(object).data();
            return;
        }
        const auto array = writable(out);
        if (array.ndim() != 2 || array.shape(0) != n || array.shape(1) != width ||
            !is_contiguous(array)) {
            throw nb::value_error(("out must be C-contiguous with shape [" + std::to_string(n) +
                                   ", " + std::to_string(width) + "], its shape is " +
                                   shape_of(array))
                                      .c_str());
        }
        object = out;
        data = static_cast<float*>(array.data());
    }

    nb::object object;
    float* data = nullptr;
};

void same_length(const char* left, std::size_t n_left, const char* right, std::size_t n_right) {
    if (n_left != n_right) {
        throw nb::value_error((std::string(left) + " and " + right + " must have one length, not " +
                               std::to_string(n_left) + " and " + std::to_string(n_right))
                                  .c_str());
    }
}

void check_rows(const char* name, const Input<float>& rows, std::size_t n, std::size_t width) {
    if (rows.shape(0) != n || rows.shape(1) != width) {
        throw nb::value_error((std::string(name) + " must have shape [" + std::to_string(n) + ", " +
                               std::to_string(width) + "], not [" + std::to_string(rows.shape(0)) +
                               ", " + std::to_string(rows.shape(1)) + "]")
                                  .c_str());
    }
}

std::uint32_t event_time(std::int64_t now_s) {
    // A time in milliseconds is the likely mistake, and it lies beyond 2^32 - 1 seconds.
    return in_range("now_s (event time in seconds since 1970)", now_s, 0, max_time_s);
}

std::uint64_t not_negative(const char* name, std::int64_t value) {
    require(value >= 0,
            std::string(name) + " is " + std::to_string(value) + "; it must not be negative");
    return static_cast<std::uint64_t>(value);
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
        : ids("ids", nb::cast<AnyArray>(slot[1])),
          offsets("offsets", nb::cast<AnyArray>(slot[2])),
          is_counted("is_counted", nb::cast<AnyArray>(slot[3])) {
        const auto at = nb::cast<std::size_t>(slot[0]);
        require(at < n_slots,
                "slot " + std::to_string(at) + " of " + std::to_string(n_slots) + " slots");
        same_length("offsets without the first", offsets.size() - 1, "requests", n_rows);
        same_length("is_counted", is_counted.size(), "requests", n_rows);
        bool is_rising = offsets.size() > 0 && offsets.data()[0] == 0;
        for (std::size_t i = 1; i < offsets.size(); ++i) {
            is_rising &= offsets.data()[i - 1] <= offsets.data()[i];
        }
        require(is_rising && offsets.data()[n_rows] == static_cast<std::int64_t>(ids.size()),
                "offsets must start at 0, never fall and end at the number of ids, " +
                    std::to_string(ids.size()));
        bags = {.ids = ids.span(),
                .offsets = offsets.span(),
                .is_counted = is_counted.span(),
                .slot = at,
                .is_mean = nb::cast<bool>(slot[4])};
    }

    IdsInput ids;
    Input<std::int64_t> offsets;
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
        const auto slot = nb::cast<nb::tuple>(handle);
        // Indexing a tuple checks nothing.
        require(slot.size() == 5, "a slot is (number, ids, offsets, is_counted, is_mean), not " +
                                      std::to_string(slot.size()) + " entries");
        inputs.emplace_back(slot, n_rows, array.shape(1));
        bags.push_back(inputs.back().bags);
    }
    const nb::gil_scoped_release release;
    table.read(bags, requests_input.span(), time_s, array.shape(1),
               static_cast<float*>(array.data()));
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
    return result;
}

NumpyArray<std::uint64_t> hash_strings(const nb::list& values, std::uint64_t seed) {
    auto out = new_array<std::uint64_t>({values.size()});
    std::uint64_t* to = out.data();
    for (const nb::handle value : values) {
        if (!nb::isinstance<nb::str>(value)) {
            throw nb::type_error("values must be a list of str");
        }
        Py_ssize_t n_bytes = 0;
        const char* text = PyUnicode_AsUTF8AndSize(value.ptr(), &n_bytes);
        if (text == nullptr) {
            throw nb::python_error();  // a lone surrogate has no UTF-8 form
        }
        *to++ = siphash24(text, static_cast<std::size_t>(n_bytes), {seed, sip_second_half});
    }
    return out;
}

NumpyArray<std::uint64_t> mix_ids(const AnyArray& left, const AnyArray& right, std::uint64_t seed) {
    const IdsInput left_input("left", left);
    const IdsInput right_input("right", right);
    same_length("left", left_input.size(), "right", right_input.size());
    auto out = new_array<std::uint64_t>({left_input.size()});
    std::uint64_t* to = out.data();
    const nb::gil_scoped_release release;
    for (std::size_t i = 0; i < left_input.size(); ++i) {
        to[i] =
            siphash24_pair(left_input.data()[i], right_input.data()[i], {seed, sip_second_half});
    }
    return out;
}

Policy policy_of(const Table& table) {
    const nb::gil_scoped_release release;
    return table.policy();
}

void bind_table(nb::module_& m) {
    nb::class_<Table>(m, "Table")
        .def(
            "__init__",
            [](Table* self, std::int64_t dim, bool first_order, const nb::object& optimizer,
               const nb::object& first_order_optimizer, double init_scale, std::uint64_t seed,
               std::int64_t slot, std::int64_t min_count, double probability, std::int64_t ttl_s,
               std::int64_t initial_rows) {
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
                new (self) Table(config, n_rows);
            },
            nb::kw_only(), "dim"_a, "first_order"_a, "optimizer"_a,
            "first_order_optimizer"_a = nb::none(), "init_scale"_a, "seed"_a, "slot"_a,
            "min_count"_a, "probability"_a, "ttl_s"_a, "initial_rows"_a)
        .def_prop_ro("width", [](const Table& table) { return table.config().width(); })
        .def_prop_ro("dim", [](const Table& table) { return table.config().dim; })
        .def_prop_rw(
            "threads", [](const Table& table) { return table.n_threads(); },
            [](Table& table, std::int64_t n) {
                table.set_threads(in_range("threads", n, 1, max_threads));
            },
            nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("optimizer",
                     [](const Table& table) { return object_of(policy_of(table).optimizer); })
        .def_prop_ro(
            "first_order_optimizer",
            [](const Table& table) { return object_of(policy_of(table).first_order_optimizer); })
        .def(
            "configure",
            [](Table& table, const nb::object& optimizer, const nb::object& first_order_optimizer,
               std::int64_t min_count, double probability, std::int64_t ttl_s) {
                const Policy policy{
                    .optimizer = optimizer_of(optimizer),
                    .first_order_optimizer = optional_optimizer_of(first_order_optimizer),
                    .probability = probability,
                    .min_count = in_range("min_count", min_count, 1, max_min_count),
                    .ttl_s = in_range("ttl_s", ttl_s, 0, max_time_s)};
                const nb::gil_scoped_release release;
                table.configure(policy);
            },
            nb::kw_only(), "optimizer"_a, "first_order_optimizer"_a = nb::none(), "min_count"_a,
            "probability"_a, "ttl_s"_a)
        .def(
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
            "gradients"_a)
        .def("contains", by_id<std::uint8_t>(&Table::contains), "ids"_a)
        .def("pending", by_id<std::uint32_t>(&Table::pending), "ids"_a)
        .def("born_s", by_id<std::uint32_t>(&Table::born_s), "ids"_a)
        .def("last_seen_s", by_id<std::uint32_t>(&Table::last_seen_s), "ids"_a)
        .def(
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
            "through"_a)
        .def("snapshot",
             [](const Table& table) {
                 std::vector<std::uint8_t> bytes;
                 {
                     const nb::gil_scoped_release release;
                     bytes = table.snapshot();
                 }
                 return nb::bytes(bytes.data(), bytes.size());
             })
        .def_static(
            "restore",
            [](const nb::bytes& data) {
                const std::span bytes(static_cast<const std::uint8_t*>(data.data()), data.size());
                const nb::gil_scoped_release release;
                return Table::restore(bytes);
            },
            "data"_a)
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

}  // namespace
}  // namespace freshrank

NB_MODULE(_native, m) {
    m.attr("FORMAT_VERSION") = freshrank::format_version;
    // The handler releases no lock and takes none: C++ exceptions cross only this border.
    nb::exception<freshrank::StoreError>(m, "StoreError");
    m.def("hash_strings", &freshrank::hash_strings, "values"_a, "seed"_a);
    m.def("mix_ids", &freshrank::mix_ids, "left"_a, "right"_a, "seed"_a);
    m.def("check_optimizer", [](const nb::object& object) { freshrank::optimizer_of(object); });
    freshrank::bind_table(m);
    freshrank::bind_serving_table(m);
}
