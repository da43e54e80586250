// Aligned memory for buckets and rows, counted, and the prefetch hint.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
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
    // As a number: where there is no row, its lines are none either, which is no pointer's affair.
    const auto first = reinterpret_cast<std::uintptr_t>(lines.first);
    for (std::size_t i = 0; i < lines.n_bytes; i += line_bytes) {
        __builtin_prefetch(reinterpret_cast<const void*>(first + i));
    }
#endif
}

enum class Fill { zeros, nothing };

// Bytes of arrays held now, and the most that were held at once: growth that copies holds both.
struct Tally {
    std::uint64_t n_bytes = 0;
    std::uint64_t peak_bytes = 0;

    void add(std::uint64_t n) {
        n_bytes += n;
        peak_bytes = std::max(peak_bytes, n_bytes);
    }
};

// Cache-line aligned array, counted where a tally is given, which must outlive it. From 2 MiB on it
// is aligned to huge pages and asks for them: random access to millions of rows otherwise pays a
// page walk on top of every cache miss. Zeros of 32 MiB and more take no time until they are
// touched.
template <class T>
class AlignedArray {
    static_assert(std::is_trivially_copyable_v<T>);

  public:
    AlignedArray() = default;
    explicit AlignedArray(std::size_t n, Fill fill = Fill::zeros, Tally* tally = nullptr) : n_(n) {
        const std::size_t n_bytes = n * sizeof(T);
        const std::size_t alignment = n_bytes >= huge_page_bytes ? huge_page_bytes : line_bytes;
        if (fill == Fill::zeros && n_bytes >= lazy_bytes) {
            data_ = lazy_zeros(n_bytes, tally);
            fill = Fill::nothing;
        } else {
            data_ = {static_cast<T*>(::operator new(n_bytes, std::align_val_t{alignment})),
                     Release{nullptr, alignment, n_bytes, tally}};
        }
        if (tally != nullptr) {
            tally->add(n_bytes);
        }
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
    // What calloc mostly gets from the system, which has cleared it. Small arrays do without, as
    // each takes another huge page for its alignment.
    static constexpr std::size_t lazy_bytes = std::size_t{8} << 20;

    struct Release {
        void* block = nullptr;  // of calloc, where it is of lazy_zeros
        std::size_t alignment = line_bytes;
        std::size_t n_bytes = 0;
        Tally* tally = nullptr;
        void operator()(T* pointer) const {
            if (tally != nullptr) {
                tally->n_bytes -= n_bytes;
            }
            if (block != nullptr) {
                std::free(block);
            } else {
                ::operator delete(pointer, std::align_val_t{alignment});
            }
        }
    };

    static std::unique_ptr<T, Release> lazy_zeros(std::size_t n_bytes, Tally* tally) {
        std::size_t n_block = n_bytes + huge_page_bytes;
        void* const block = std::calloc(n_block, 1);
        if (block == nullptr) {
            throw std::bad_alloc();
        }
        void* first = block;
        std::align(huge_page_bytes, n_bytes, first, n_block);
        return {static_cast<T*>(first), Release{block, huge_page_bytes, n_bytes, tally}};
    }

    std::unique_ptr<T, Release> data_;
    std::size_t n_ = 0;
};

}  // namespace freshrank
