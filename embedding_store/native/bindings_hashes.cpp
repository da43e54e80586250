// Ids made from strings and from pairs of ids.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "bindings.hpp"
#include "bindings_arrays.hpp"
#include "core/hash.hpp"

namespace freshrank {

using namespace nb::literals;

namespace {

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
}  // namespace

void bind_hashes(nb::module_& m) {
    m.def("hash_strings", &hash_strings, "values"_a, "seed"_a);
    m.def("mix_ids", &mix_ids, "left"_a, "right"_a, "seed"_a);
}

}  // namespace freshrank
