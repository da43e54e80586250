// The only file here that knows Python: checks arrays, releases the interpreter lock, calls on.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/unique_ptr.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "rings.hpp"
#include "series.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace freshrank::live {
namespace {

template <class T>
using In = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<nb::numpy, T, nb::ndim<1>>;

// A numpy array that owns the vector's memory.
template <class T>
Out<T> to_numpy(std::vector<T>&& values) {
    auto owned = std::make_unique<std::vector<T>>(std::move(values));
    T* data = owned->data();
    const std::size_t n = owned->size();
    nb::capsule owner(owned.release(),
                      [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return Out<T>(data, {n}, owner);
}

void same_length(const char* name, std::size_t n, std::size_t expected) {
    if (n != expected) {
        const std::string text = std::string(name) + " has " + std::to_string(n) +
                                 " entries, expected " + std::to_string(expected);
        throw nb::value_error(text.c_str());
    }
}

// Offsets of requests among n rows.
void check_offsets(const In<std::int64_t>& offsets, std::size_t n_requests, std::size_t n) {
    same_length("offsets", offsets.size(), n_requests + 1);
    const std::int64_t* at = offsets.data();
    bool is_fine = at[0] == 0 && at[n_requests] == static_cast<std::int64_t>(n);
    for (std::size_t r = 0; r < n_requests; ++r) {
        is_fine &= at[r] <= at[r + 1];
    }
    if (!is_fine) {
        throw nb::value_error("offsets must start at 0, never fall and end at the number of rows");
    }
}

std::unique_ptr<Series> make_series(const std::string& kind, double span_ms) {
    if (!(span_ms > 0) || !std::isfinite(span_ms)) {
        throw nb::value_error("span_ms must be a number above 0");
    }
    if (kind == "sum") {
        return std::make_unique<SeriesOf<DecayedSum>>(span_ms);
    }
    if (kind == "last") {
        return std::make_unique<SeriesOf<SinceLast>>(span_ms);
    }
    if (kind == "first") {
        return std::make_unique<SeriesOf<SinceFirst>>(span_ms);
    }
    throw nb::value_error(("kind is '" + kind + "'; it must be sum, last or first").c_str());
}

void bind_series(nb::module_& m) {
    nb::class_<Series>(m, "Series")
        .def(nb::new_(
                 [](nb::str kind, double span_ms) { return make_series(kind.c_str(), span_ms); }),
             nb::kw_only(), "kind"_a, "span_ms"_a)
        .def("__len__", &Series::size)
        .def(
            "add",
            [](Series& self, const In<std::uint64_t>& keys, const In<std::int64_t>& ts_ms) {
                same_length("ts_ms", ts_ms.size(), keys.size());
                const nb::gil_scoped_release release;
                self.add(keys.data(), ts_ms.data(), keys.size());
            },
            nb::arg("keys").noconvert(), nb::arg("ts_ms").noconvert())
        .def(
            "read",
            [](const Series& self, const In<std::uint64_t>& keys, const In<std::int64_t>& ts_ms) {
                same_length("ts_ms", ts_ms.size(), keys.size());
                std::vector<double> values(keys.size());
                {
                    const nb::gil_scoped_release release;
                    self.read(keys.data(), ts_ms.data(), keys.size(), values.data());
                }
                return to_numpy(std::move(values));
            },
            nb::arg("keys").noconvert(), nb::arg("ts_ms").noconvert())
        .def(
            "read_then_add",
            [](Series& self, const In<std::int64_t>& offsets, const In<std::uint64_t>& keys,
               const In<std::int64_t>& ts_ms, const std::optional<In<bool>>& acted) {
                check_offsets(offsets, ts_ms.size(), keys.size());
                if (acted) {
                    same_length("acted", acted->size(), keys.size());
                }
                std::vector<double> values(keys.size());
                {
                    const nb::gil_scoped_release release;
                    self.read_then_add(offsets.data(), ts_ms.size(), keys.data(), ts_ms.data(),
                                       acted ? acted->data() : nullptr, values.data());
                }
                return to_numpy(std::move(values));
            },
            nb::arg("offsets").noconvert(), nb::arg("keys").noconvert(),
            nb::arg("ts_ms").noconvert(), nb::arg("acted").noconvert().none())
        .def("entries",
             [](const Series& self) {
                 std::vector<std::uint64_t> keys;
                 std::vector<std::int64_t> times;
                 std::vector<double> x, y;
                 {
                     const nb::gil_scoped_release release;
                     for (const auto& slot : self.entries()) {
                         keys.push_back(slot.key);
                         times.push_back(slot.payload.time);
                         x.push_back(slot.payload.x);
                         y.push_back(slot.payload.y);
                     }
                 }
                 return nb::make_tuple(to_numpy(std::move(keys)), to_numpy(std::move(times)),
                                       to_numpy(std::move(x)), to_numpy(std::move(y)));
             })
        .def(
            "restore",
            [](Series& self, const In<std::uint64_t>& keys, const In<std::int64_t>& times,
               const In<double>& x, const In<double>& y) {
                same_length("times", times.size(), keys.size());
                same_length("x", x.size(), keys.size());
                same_length("y", y.size(), keys.size());
                const nb::gil_scoped_release release;
                std::vector<Entry> entries(keys.size());
                for (std::size_t i = 0; i < keys.size(); ++i) {
                    entries[i] = {times.data()[i], x.data()[i], y.data()[i]};
                }
                self.restore(keys.data(), entries.data(), keys.size());
            },
            nb::arg("keys").noconvert(), nb::arg("times").noconvert(), nb::arg("x").noconvert(),
            nb::arg("y").noconvert());
}

nb::tuple to_tuple(Recents&& recents) {
    return nb::make_tuple(to_numpy(std::move(recents.items)), to_numpy(std::move(recents.offsets)));
}

void bind_rings(nb::module_& m) {
    nb::class_<Rings>(m, "Rings")
        .def(
            "__init__",
            [](Rings* self, std::int64_t n_max) {
                if (n_max < 1 || n_max > 1'024) {
                    throw nb::value_error("n_max must be from 1 to 1024");
                }
                new (self) Rings(static_cast<std::size_t>(n_max));
            },
            nb::kw_only(), "n_max"_a)
        .def("__len__", &Rings::size)
        .def(
            "add",
            [](Rings& self, const In<std::uint64_t>& keys, const In<std::int64_t>& ts_ms,
               const In<std::uint64_t>& ties, const In<std::uint64_t>& items) {
                same_length("ts_ms", ts_ms.size(), keys.size());
                same_length("ties", ties.size(), keys.size());
                same_length("items", items.size(), keys.size());
                const nb::gil_scoped_release release;
                std::vector<Did> did(keys.size());
                for (std::size_t i = 0; i < keys.size(); ++i) {
                    did[i] = {keys.data()[i], ts_ms.data()[i], ties.data()[i], items.data()[i]};
                }
                self.add(did);
            },
            nb::arg("keys").noconvert(), nb::arg("ts_ms").noconvert(), nb::arg("ties").noconvert(),
            nb::arg("items").noconvert())
        .def(
            "read",
            [](const Rings& self, const In<std::uint64_t>& keys, const In<std::int64_t>& ts_ms) {
                same_length("ts_ms", ts_ms.size(), keys.size());
                Recents recents;
                {
                    const nb::gil_scoped_release release;
                    recents = self.read(keys.data(), ts_ms.data(), keys.size());
                }
                return to_tuple(std::move(recents));
            },
            nb::arg("keys").noconvert(), nb::arg("ts_ms").noconvert())
        .def(
            "read_then_add",
            [](Rings& self, const In<std::int64_t>& offsets, const In<std::uint64_t>& keys,
               const In<bool>& is_known, const In<std::int64_t>& ts_ms,
               const In<std::uint64_t>& items, const In<bool>& acted, std::uint64_t first_tie) {
                check_offsets(offsets, ts_ms.size(), items.size());
                same_length("keys", keys.size(), ts_ms.size());
                same_length("is_known", is_known.size(), ts_ms.size());
                same_length("acted", acted.size(), items.size());
                Recents recents;
                {
                    const nb::gil_scoped_release release;
                    recents = self.read_then_add(offsets.data(), ts_ms.size(), keys.data(),
                                                 is_known.data(), ts_ms.data(), items.data(),
                                                 acted.data(), first_tie);
                }
                return to_tuple(std::move(recents));
            },
            nb::arg("offsets").noconvert(), nb::arg("keys").noconvert(),
            nb::arg("is_known").noconvert(), nb::arg("ts_ms").noconvert(),
            nb::arg("items").noconvert(), nb::arg("acted").noconvert(), "first_tie"_a)
        .def("entries", [](const Rings& self) {
            std::vector<std::uint64_t> keys, ties, items;
            std::vector<std::int64_t> ts;
            {
                const nb::gil_scoped_release release;
                for (const Did& did : self.entries()) {
                    keys.push_back(did.key);
                    ts.push_back(did.ts);
                    ties.push_back(did.tie);
                    items.push_back(did.item);
                }
            }
            return nb::make_tuple(to_numpy(std::move(keys)), to_numpy(std::move(ts)),
                                  to_numpy(std::move(ties)), to_numpy(std::move(items)));
        });
}

}  // namespace
}  // namespace freshrank::live

NB_MODULE(_live, m) {
    // Daemon threads of a service may hold state until the process ends: that is no leak.
    nb::set_leak_warnings(false);
    freshrank::live::bind_series(m);
    freshrank::live::bind_rings(m);
}
