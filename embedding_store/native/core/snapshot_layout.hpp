// Format v1 of a table, byte for byte as in FORMAT.md: header, section sizes, checksum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "config.hpp"
#include "hash.hpp"
#include "optimizer_config.hpp"
#include "pending.hpp"

namespace freshrank {

inline constexpr char snapshot_magic[8] = {'F', 'R', 'T', 'A', 'B', 'L', 'E', '\n'};
inline constexpr SipKey checksum_key{0, 0};
inline constexpr std::size_t checksum_bytes = 8;

// Written to disk as it lies in memory: little-endian, no padding, every field at its own offset.
struct SnapshotHeader {
    char magic[8];
    std::uint32_t version;
    std::uint32_t flags;
    std::uint64_t n_bytes;

    std::uint32_t dim;
    std::uint32_t first_order;
    std::uint32_t n_optimizers;
    std::uint32_t slot;
    double init_scale;
    double probability;
    std::uint64_t seed;
    std::uint32_t min_count;
    std::uint32_t ttl_s;
    OptimizerConfig optimizer;
    OptimizerConfig first_order_optimizer;

    std::uint64_t table_version;
    std::uint64_t clock_s;
    std::uint64_t n_draws;
    std::uint64_t n_admitted;
    std::uint64_t n_filtered;
    std::uint64_t n_expired;
    std::uint64_t n_erased;
    std::uint32_t row_cursor;
    std::uint32_t evict_cursor;

    std::uint32_t row_high_water;
    std::uint32_t n_row_free;
    std::uint64_t n_pending;
    std::uint64_t n_tombstones;

    Limits limits;
    std::uint64_t room_rows;
    std::uint64_t n_evicted;
    std::uint64_t n_sketch_admitted;
    std::uint64_t n_wanted;
    std::uint64_t n_sketch_counted;
    std::uint64_t n_sketch_lines;
};
static_assert(sizeof(Limits) == 32 && sizeof(SnapshotHeader) == 432 &&
                  std::is_trivially_copyable_v<SnapshotHeader> &&
                  offsetof(SnapshotHeader, dim) == 24 && offsetof(SnapshotHeader, seed) == 56 &&
                  offsetof(SnapshotHeader, optimizer) == 72 &&
                  offsetof(SnapshotHeader, table_version) == 264 &&
                  offsetof(SnapshotHeader, row_cursor) == 320 &&
                  offsetof(SnapshotHeader, n_tombstones) == 344 &&
                  offsetof(SnapshotHeader, limits) == 352,
              "the header's layout is the file format");

inline constexpr std::uint64_t row_metadata_bytes = 8 + 8 + 4 + 4 + 4;
inline constexpr std::uint64_t pending_entry_bytes = 8 + 4 + 4;
inline constexpr std::uint64_t tombstone_bytes = 8 + 8;

// 128 bits are not needed: the reader first bounds every 64-bit count by the file's length, every
// other factor is below 2^32, and max_dim keeps a row below 2^18 bytes.
inline std::uint64_t body_bytes(const SnapshotHeader& header, std::uint64_t row_floats) {
    const std::uint64_t n_rows = std::uint64_t{header.row_high_water} - header.n_row_free;
    return std::uint64_t{header.n_row_free} * 4 + n_rows * (row_metadata_bytes + row_floats * 4) +
           header.n_pending * pending_entry_bytes + header.n_sketch_lines * sizeof(Sketch::Line) +
           header.n_tombstones * tombstone_bytes;
}

}  // namespace freshrank
