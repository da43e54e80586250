// Arrays at the border to Python: what comes in is checked and borrowed, what goes out is owned.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/config.hpp"
#include "core/memory.hpp"

namespace freshrank {

namespace nb = nanobind;

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

inline std::string name_of(const nb::dlpack::dtype& dtype) {
    static constexpr const char* kinds[] = {"int", "uint", "float", "object", "bfloat", "complex"};
    if (dtype.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bool)) {
        return "bool";
    }
    return dtype.code < std::size(kinds) ? kinds[dtype.code] + std::to_string(dtype.bits)
                                         : "a kind of its own";
}

// What Python gave, as T, or a TypeError that names it.
template <class T>
T as(const nb::handle& value, const std::string& name, const char* kind) {
    T converted;
    if (!nb::try_cast(value, converted)) {
        throw nb::type_error((name + " must be " + kind).c_str());
    }
    return converted;
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
            throw nb::type_error(
                (std::string(name) + " must have dtype " + name_of<T>() + ", not " +
                 name_of(array.dtype()) +
                 (std::is_same_v<T, std::uint64_t> && array.dtype() == nb::dtype<std::int64_t>()
                      ? ": of an int64 array take .view(np.uint64)"
                      : ""))
                    .c_str());
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

// The core writes bytes of 0 and 1; numpy's masks are bools.
inline std::uint8_t* bytes_of(NumpyArray<bool>& mask) {
    static_assert(sizeof(bool) == 1);
    return reinterpret_cast<std::uint8_t*>(mask.data());
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

inline nb::ndarray<nb::device::cpu> writable(const nb::object& out) {
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

inline void same_length(const char* left, std::size_t n_left, const char* right,
                        std::size_t n_right) {
    if (n_left != n_right) {
        throw nb::value_error((std::string(left) + " and " + right + " must have one length, not " +
                               std::to_string(n_left) + " and " + std::to_string(n_right))
                                  .c_str());
    }
}

inline void check_rows(const char* name, const Input<float>& rows, std::size_t n,
                       std::size_t width) {
    if (rows.shape(0) != n || rows.shape(1) != width) {
        throw nb::value_error((std::string(name) + " must have shape [" + std::to_string(n) + ", " +
                               std::to_string(width) + "], not [" + std::to_string(rows.shape(0)) +
                               ", " + std::to_string(rows.shape(1)) + "]")
                                  .c_str());
    }
}

inline std::uint32_t event_time(std::int64_t now_s) {
    // A time in milliseconds is the likely mistake, and it lies beyond 2^32 - 1 seconds.
    return in_range("now_s (event time in seconds since 1970)", now_s, 0, max_time_s);
}

inline std::uint64_t not_negative(const char* name, std::int64_t value) {
    require(value >= 0,
            std::string(name) + " is " + std::to_string(value) + "; it must not be negative");
    return static_cast<std::uint64_t>(value);
}
}  // namespace freshrank
