// Format v1 of a table, byte for byte as in FORMAT.md: header, records, checksum.
#pragma once

#include <algorithm>
#include <bit>
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
inline constexpr std::uint32_t increment_flag = 1;

// Written to disk as it lies in memory: little-endian, no padding, every field at its own offset.
struct SnapshotHeader {
    char magic[8];
    std::uint32_t version;
    std::uint32_t flags;
    std::uint64_t base;  // id of the snapshot that an increment continues

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
    std::uint32_t n_free_kept;  // of the free rows: as in the base
    std::uint32_t reserved;
};
static_assert(sizeof(Limits) == 32 && sizeof(SnapshotHeader) == 440 &&
                  std::is_trivially_copyable_v<SnapshotHeader> &&
                  offsetof(SnapshotHeader, dim) == 24 && offsetof(SnapshotHeader, seed) == 56 &&
                  offsetof(SnapshotHeader, optimizer) == 72 &&
                  offsetof(SnapshotHeader, table_version) == 264 &&
                  offsetof(SnapshotHeader, row_cursor) == 320 &&
                  offsetof(SnapshotHeader, n_tombstones) == 344 &&
                  offsetof(SnapshotHeader, limits) == 352,
              "the header's layout is the file format");

// A row but for its floats, which follow.
struct RowRecord {
    std::uint32_t row;
    std::uint32_t last_seen_s;
    std::uint32_t born_s;
    std::uint32_t frequency;
    std::uint64_t key;
    std::uint64_t version;
};
static_assert(sizeof(RowRecord) == 32 && sizeof(PendingCounts::Entry) == 16 &&
                  offsetof(PendingCounts::Entry, seen_s) == 12 && sizeof(Sketch::Line) == 64 &&
                  std::is_trivially_copyable_v<PendingCounts::Entry>,
              "records stand in files as in memory");

inline constexpr std::uint32_t most_block_rows = 4096;

// Rows that a block of a file holds at most, a power of two: about 256 KiB of them, which are
// copied in some 50 us, so that no batch waits longer for a snapshot.
inline std::uint32_t block_rows(std::uint64_t row_floats) {
    const std::uint64_t fits = (std::uint64_t{1} << 18) / (sizeof(RowRecord) + row_floats * 4);
    return std::bit_floor(
        static_cast<std::uint32_t>(std::clamp<std::uint64_t>(fits, 1, most_block_rows)));
}

}  // namespace freshrank
