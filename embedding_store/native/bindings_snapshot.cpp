// Snapshots: read chunk by chunk, restored from bytes, files or whatever yields bytes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/unique_ptr.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "core/snapshot.hpp"
#include "core/table.hpp"

namespace freshrank {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr std::size_t file_chunk_bytes = 1 << 20;

// What yields a snapshot's chunks: bytes-like is one, a path is read in pieces, an iterable has its
// own.
class Chunks {
  public:
    explicit Chunks(const nb::object& from) {
        const nb::module_ builtins = nb::module_::import_("builtins");
        if (PyObject_CheckBuffer(from.ptr()) != 0) {
            chunks_ = nb::iter(nb::make_tuple(nb::bytes(from)));
        } else if (nb::isinstance<nb::str>(from) || nb::hasattr(from, "__fspath__")) {
            file_ = builtins.attr("open")(from, "rb", 0);
            const nb::object read =
                nb::cpp_function([file = file_] { return file.attr("read")(file_chunk_bytes); });
            chunks_ = builtins.attr("iter")(read, nb::bytes("", 0));
        } else {
            chunks_ = nb::iter(from);
        }
    }
    Chunks(Chunks&&) = default;
    ~Chunks() {
        if (file_.is_valid()) {
            file_.attr("close")();
        }
    }

    // Called without the interpreter lock.
    std::span<const std::uint8_t> next() {
        const nb::gil_scoped_acquire acquire;
        do {
            chunk_ = nb::steal(PyIter_Next(chunks_.ptr()));
            if (!chunk_.is_valid()) {
                if (PyErr_Occurred() != nullptr) {
                    throw nb::python_error();
                }
                return {};
            }
            if (!nb::isinstance<nb::bytes>(chunk_)) {
                throw nb::type_error("a snapshot comes as bytes, a path or an iterable of bytes");
            }
        } while (nb::len(chunk_) == 0);
        const auto bytes = nb::borrow<nb::bytes>(chunk_);
        return {static_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
    }

  private:
    nb::object file_;
    nb::object chunks_;
    nb::object chunk_;  // the last, which must live until the next
};

std::unique_ptr<Table> restore(const nb::object& data, const nb::args& increments,
                               std::shared_ptr<Budget> budget) {
    std::vector<Chunks> chunks;
    chunks.reserve(1 + increments.size());
    chunks.emplace_back(data);
    for (const nb::handle increment : increments) {
        chunks.emplace_back(nb::borrow(increment));
    }
    std::vector<SnapshotSource> chain;
    for (Chunks& own : chunks) {
        chain.emplace_back([&own] { return own.next(); });
    }
    const nb::gil_scoped_release release;
    return Table::restore(chain, std::move(budget));
}

nb::bytes next_chunk(Snapshot& snapshot) {
    Snapshot::Bytes chunk;
    {
        const nb::gil_scoped_release release;
        snapshot.next(chunk);
    }
    if (chunk.empty()) {
        throw nb::stop_iteration();
    }
    return nb::bytes(chunk.data(), chunk.size());
}

}  // namespace

void bind_snapshots(nb::module_& m, nb::class_<Table>& type) {
    nb::class_<Snapshot>(m, "Snapshot")
        .def("__enter__", [](nb::handle self) { return nb::borrow(self); })
        .def("__exit__",
             [](Snapshot& snapshot, const nb::args&) {
                 const nb::gil_scoped_release release;
                 snapshot.close();
             })
        .def("__iter__", [](nb::handle self) { return nb::borrow(self); })
        .def("__next__", &next_chunk)
        .def("close", &Snapshot::close, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("id", &Snapshot::id, nb::call_guard<nb::gil_scoped_release>());
    type.def("begin_snapshot", &Table::begin_snapshot, "since"_a = nb::none(),
             nb::keep_alive<0, 1>(), nb::call_guard<nb::gil_scoped_release>())
        .def("snapshot",
             [](Table& table) {
                 std::vector<std::uint8_t> bytes;
                 {
                     const nb::gil_scoped_release release;
                     bytes = table.snapshot();
                 }
                 return nb::bytes(bytes.data(), bytes.size());
             })
        .def_static("restore", &restore, "data"_a, "increments"_a, nb::kw_only(),
                    "budget"_a = nb::none());
}

}  // namespace freshrank
