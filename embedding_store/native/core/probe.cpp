#include "probe.hpp"

#include <algorithm>
#include <cstring>

#include "pipeline.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace freshrank {

namespace {

// Bodies of both sets, inlined into each and so compiled for its instructions.

[[gnu::always_inline]] inline void home_all(const Index& index, const std::uint64_t* keys,
                                            std::size_t n, const Bucket** homes) {
    std::uint64_t hashes[group_keys];
    for (std::size_t i = 0; i < n; ++i) {
        hashes[i] = index.hash(keys[i]);
    }
    for (std::size_t i = 0; i < n; ++i) {
        homes[i] = &index.home_bucket(hashes[i]);
        prefetch({homes[i], sizeof(Bucket)});
    }
}

// use(i, row) for every key in its home bucket or nowhere, then for the others.
template <class Match, class Use>
[[gnu::always_inline]] inline void find_all(const Index& index, const std::uint64_t* keys,
                                            const Bucket* const* homes, std::size_t n, Match match,
                                            Use use) {
    std::uint32_t undecided[group_keys];
    std::size_t n_undecided = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const auto answer = homes[i]->answer(match(*homes[i], keys[i]));
        undecided[n_undecided] = static_cast<std::uint32_t>(i);
        n_undecided += answer.is_undecided ? 1 : 0;
        use(i, answer.row);
    }
    for (std::size_t k = 0; k < n_undecided; ++k) {
        use(undecided[k], index.find(keys[undecided[k]]));
    }
}

template <class Match>
[[gnu::always_inline]] inline void find_rows(const Index& index, const std::uint64_t* keys,
                                             const Bucket* const* homes, std::size_t n, Match match,
                                             std::uint32_t* rows) {
    find_all(index, keys, homes, n, match,
             [rows](std::size_t i, std::uint32_t row) { rows[i] = row; });
}

template <class Match>
[[gnu::always_inline]] inline void locate_rows(const Index& index, const RowSlabs& slabs,
                                               const std::uint64_t* keys,
                                               const Bucket* const* homes, std::size_t n,
                                               std::size_t n_bytes, Match match,
                                               const float** places) {
    // Of a long row the processor fetches the rest by itself once copying has begun.
    const std::size_t n_fetched = std::min(n_bytes, 2 * line_bytes);
    const auto rows = slabs.view();
    find_all(index, keys, homes, n, match, [=](std::size_t i, std::uint32_t row) {
        places[i] = row == no_row ? nullptr : rows.at(row);
        prefetch({places[i], n_fetched});
    });
}

struct Portable {
    unsigned operator()(const Bucket& bucket, std::uint64_t key) const { return bucket.match(key); }
};

void home_portable(const Index& index, const std::uint64_t* keys, std::size_t n,
                   const Bucket** homes) {
    home_all(index, keys, n, homes);
}

void find_portable(const Index& index, const std::uint64_t* keys, const Bucket* const* homes,
                   std::size_t n, std::uint32_t* rows) {
    find_rows(index, keys, homes, n, Portable{}, rows);
}

void locate_portable(const Index& index, const RowSlabs& slabs, const std::uint64_t* keys,
                     const Bucket* const* homes, std::size_t n, std::size_t n_bytes,
                     const float** places) {
    locate_rows(index, slabs, keys, homes, n, n_bytes, Portable{}, places);
}

void copy_portable(const float* const* places, std::size_t n, std::size_t width, float* out) {
    with_width(static_cast<std::uint32_t>(width), [&](auto n_floats) {
        for (std::size_t i = 0; i < n; ++i, out += n_floats) {
            if (places[i] == nullptr) {
                std::memset(out, 0, n_floats * sizeof(float));
            } else {
                std::memcpy(out, places[i], n_floats * sizeof(float));
            }
        }
    });
}

#if defined(__x86_64__) && defined(__GNUC__)

// One compare over the whole bucket; lanes 5 to 7 hold rows and counters and are masked away.
struct Wide {
    [[gnu::target("avx512f,avx512dq")]] unsigned operator()(const Bucket& bucket,
                                                            std::uint64_t key) const {
        const __m512i wanted = _mm512_set1_epi64(static_cast<long long>(key));
        return _mm512_cmpeq_epi64_mask(_mm512_load_si512(&bucket), wanted) & bucket.used();
    }
};

[[gnu::target("avx512f,avx512dq")]] void home_avx512(const Index& index, const std::uint64_t* keys,
                                                     std::size_t n, const Bucket** homes) {
    home_all(index, keys, n, homes);
}

[[gnu::target("avx512f,avx512dq")]] void find_avx512(const Index& index, const std::uint64_t* keys,
                                                     const Bucket* const* homes, std::size_t n,
                                                     std::uint32_t* rows) {
    find_rows(index, keys, homes, n, Wide{}, rows);
}

[[gnu::target("avx512f,avx512dq")]] void locate_avx512(const Index& index, const RowSlabs& slabs,
                                                       const std::uint64_t* keys,
                                                       const Bucket* const* homes, std::size_t n,
                                                       std::size_t n_bytes, const float** places) {
    locate_rows(index, slabs, keys, homes, n, n_bytes, Wide{}, places);
}

// Sixteen floats a turn; the last turn takes what is left and nothing beside it. n_fixed is
// n_floats, or 0 where that is known at run time only.
template <std::size_t n_fixed>
[[gnu::target("avx512f,avx512dq")]] void copy_wide(const float* const* places, std::size_t n,
                                                   std::size_t n_floats, float* out) {
    n_floats = n_fixed == 0 ? n_floats : n_fixed;
    const std::size_t n_whole = n_floats / 16 * 16;
    const auto rest = static_cast<__mmask16>((1U << (n_floats - n_whole)) - 1U);
    for (std::size_t i = 0; i < n; ++i, out += n_floats) {
        const float* from = places[i];
        if (from == nullptr) {
            std::memset(out, 0, n_floats * sizeof(float));
            continue;
        }
        for (std::size_t at = 0; at < n_whole; at += 16) {
            _mm512_storeu_ps(out + at, _mm512_loadu_ps(from + at));
        }
        if (rest != 0) {
            _mm512_mask_storeu_ps(out + n_whole, rest, _mm512_maskz_loadu_ps(rest, from + n_whole));
        }
    }
}

void copy_avx512(const float* const* places, std::size_t n, std::size_t n_floats, float* out) {
    const auto copy = n_floats == 16   ? copy_wide<16>
                      : n_floats == 64 ? copy_wide<64>
                                       : copy_wide<0>;
    copy(places, n, n_floats, out);
}

#endif

}  // namespace

const GroupLoops& portable_loops() {
    static constexpr GroupLoops loops{home_portable, find_portable, locate_portable, copy_portable};
    return loops;
}

const GroupLoops* avx512_loops() {
#if defined(__x86_64__) && defined(__GNUC__)
    static constexpr GroupLoops loops{home_avx512, find_avx512, locate_avx512, copy_avx512};
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
        return &loops;
    }
#endif
    return nullptr;
}

const GroupLoops& best_loops() {
    static const GroupLoops& best = avx512_loops() != nullptr ? *avx512_loops() : portable_loops();
    return best;
}

}  // namespace freshrank
