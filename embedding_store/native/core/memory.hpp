// Aligned memory for buckets and rows, and the prefetch hint.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace freshrank {

inline constexpr std::size_t line_bytes = 64;
inline constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

// Memory about to be read.
struct Lines {
    const void* first = nullptr;
    std::size_t n_bytes = 0;
};

// Always inlined: GCC takes a function that does nothing but prefetch for one without effect and
// drops calls to it, which at -O2 makes a lookup three times slower.
[[gnu::always_inline]] inline void prefetch([[maybe_unused]] Lines lines) {
#if defined(__GNUC__) || defined(__clang__)
    const auto* first = static_cast<const char*>(lines.first);
    for (std::size_t i = 0; i < lines.n_bytes; i += line_bytes) {
        __builtin_prefetch(first + i);
    }
#endif
}

enum class Fill { zeros, nothing };

// Cache-line aligned array. From 2 MiB on it is aligned to huge pages and asks for them:
// random access to millions of rows otherwise pays a page walk on top of every cache miss.
template <class T>
class AlignedArray {
    static_assert(std::is_trivially_copyable_v<T>);

  public:
    AlignedArray() = default;
    explicit AlignedArray(std::size_t n, Fill fill = Fill::zeros) : n_(n) {
        const std::size_t n_bytes = n * sizeof(T);
        const std::size_t alignment = n_bytes >= huge_page_bytes ? huge_page_bytes : line_bytes;
        data_ = {static_cast<T*>(::operator new(n_bytes, std::align_val_t{alignment})),
                 Release{alignment}};
#if defined(__linux__)
        if (alignment == huge_page_bytes) {
            // A hint: where it is refused the memory works all the same, only slower.
            static_cast<void>(madvise(data_.get(), n_bytes, MADV_HUGEPAGE));
        }
#endif
        if (fill == Fill::zeros) {
            std::memset(static_cast<void*>(data_.get()), 0, n_bytes);
        }
    }

    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    std::size_t size() const { return n_; }
    std::size_t n_bytes() const { return n_ * sizeof(T); }

  private:
    struct Release {
        std::size_t alignment = line_bytes;
        void operator()(T* pointer) const {
            ::operator delete(pointer, std::align_val_t{alignment});
        }
    };
    std::unique_ptr<T, Release> data_;
    std::size_t n_ = 0;
};

}  // namespace freshrank
