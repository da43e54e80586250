#include "probe.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace freshrank {

namespace {

void hash_portable(const Index& index, const std::uint64_t* keys, std::size_t n,
                   std::uint64_t* hashes) {
    for (std::size_t i = 0; i < n; ++i) {
        hashes[i] = index.hash(keys[i]);
    }
}

std::size_t probe_portable(const Index& index, const std::uint64_t* keys,
                           const std::uint64_t* hashes, std::size_t n, std::uint32_t* rows,
                           std::uint32_t* undecided) {
    std::size_t n_undecided = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const Bucket& bucket = index.home_bucket(hashes[i]);
        const auto answer = bucket.answer(bucket.match(keys[i]));
        rows[i] = answer.row;
        undecided[n_undecided] = static_cast<std::uint32_t>(i);
        n_undecided += answer.is_undecided ? 1 : 0;
    }
    return n_undecided;
}

#if defined(__x86_64__) && defined(__GNUC__)

// The same loop; the target lets the compiler take eight keys at a time.
[[gnu::target("avx512f,avx512dq")]] void hash_avx512(const Index& index, const std::uint64_t* keys,
                                                     std::size_t n, std::uint64_t* hashes) {
    for (std::size_t i = 0; i < n; ++i) {
        hashes[i] = index.hash(keys[i]);
    }
}

// One compare over the whole bucket; lanes 5 to 7 hold rows and counters and are masked away.
[[gnu::target("avx512f,avx512dq")]] std::size_t probe_avx512(const Index& index,
                                                             const std::uint64_t* keys,
                                                             const std::uint64_t* hashes,
                                                             std::size_t n, std::uint32_t* rows,
                                                             std::uint32_t* undecided) {
    std::size_t n_undecided = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const Bucket& bucket = index.home_bucket(hashes[i]);
        const __m512i line = _mm512_load_si512(&bucket);
        const __m512i wanted = _mm512_set1_epi64(static_cast<long long>(keys[i]));
        const unsigned equal = _mm512_cmpeq_epi64_mask(line, wanted);
        const auto answer = bucket.answer(equal & bucket.used());
        rows[i] = answer.row;
        undecided[n_undecided] = static_cast<std::uint32_t>(i);
        n_undecided += answer.is_undecided ? 1 : 0;
    }
    return n_undecided;
}

#endif

}  // namespace

const GroupProbes& portable_probes() {
    static constexpr GroupProbes probes{hash_portable, probe_portable};
    return probes;
}

const GroupProbes* avx512_probes() {
#if defined(__x86_64__) && defined(__GNUC__)
    static constexpr GroupProbes probes{hash_avx512, probe_avx512};
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
        return &probes;
    }
#endif
    return nullptr;
}

const GroupProbes& best_probes() {
    static const GroupProbes& best =
        avx512_probes() != nullptr ? *avx512_probes() : portable_probes();
    return best;
}

}  // namespace freshrank
