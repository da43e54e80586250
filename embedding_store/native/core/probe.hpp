// The two inner loops of every batch, once portable and once with AVX-512, chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "index.hpp"

namespace freshrank {

// Keys in flight. 64 is measured: 8 or 16, the usual advice, were 20 to 50 % slower.
inline constexpr std::size_t group_keys = 64;

struct GroupProbes {
    void (*hash)(const Index& index, const std::uint64_t* keys, std::size_t n,
                 std::uint64_t* hashes);

    // Asks every key's home bucket. Writes rows (no_row where it is not there) and, in `undecided`
    // (room for group_keys), the positions whose key may be in a later bucket; returns how many.
    std::size_t (*probe)(const Index& index, const std::uint64_t* keys, const std::uint64_t* hashes,
                         std::size_t n, std::uint32_t* rows, std::uint32_t* undecided);
};

const GroupProbes& portable_probes();
const GroupProbes* avx512_probes();  // null where the compiler or the processor lacks it
const GroupProbes& best_probes();

}  // namespace freshrank
