// The inner loops of every batch, once portable and once with AVX-512, chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "index.hpp"
#include "pool.hpp"

namespace freshrank {

// Keys in flight, twice: buckets of one group are on their way while the rows of another are.
// Measured best are 16 on Intel's Sapphire Rapids and 64 on AMD's Turin; 32 is near both.
inline constexpr std::size_t group_keys = 32;

struct GroupLoops {
    // Finds every key's home bucket and prefetches it.
    void (*home)(const Index& index, const std::uint64_t* keys, std::size_t n,
                 const Bucket** homes);

    // Writes the row of every key (no_row where it is absent).
    void (*find)(const Index& index, const std::uint64_t* keys, const Bucket* const* homes,
                 std::size_t n, std::uint32_t* rows);

    // Writes where every key's row is (null where it is absent) and prefetches its first n_bytes.
    void (*locate)(const Index& index, const RowSlabs& slabs, const std::uint64_t* keys,
                   const Bucket* const* homes, std::size_t n, std::size_t n_bytes,
                   const float** places);

    // Copies n rows of n_floats; zeros where a place is null.
    void (*copy)(const float* const* places, std::size_t n, std::size_t n_floats, float* out);
};

const GroupLoops& portable_loops();
const GroupLoops* avx512_loops();  // null where the compiler or the processor lacks it
const GroupLoops& best_loops();

}  // namespace freshrank
