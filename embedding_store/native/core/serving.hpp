// Weights only, for scoring while deltas arrive. Readers share the lock; upsert takes it slice by
// slice, so that a large base delays a reader by one slice only. No row is ever seen half-written.
#pragma once

#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <vector>

#include "config.hpp"
#include "index.hpp"
#include "lock.hpp"
#include "pipeline.hpp"
#include "pool.hpp"

namespace freshrank {

class ServingTable {
  public:
    ServingTable(std::uint32_t width, std::uint64_t initial_rows);

    std::uint32_t width() const { return width_; }
    void lookup(std::span<const std::uint64_t> ids, float* out, std::uint8_t* found) const;
    // Where a key occurs twice the later row stays.
    void upsert(std::span<const std::uint64_t> keys, const float* rows);
    std::uint64_t remove(std::span<const std::uint64_t> keys);
    std::vector<std::uint64_t> keys() const;
    std::uint64_t size() const;
    std::uint64_t n_bytes() const;

  private:
    struct KeyOfRow {
        std::uint64_t key = 0;
        bool is_live = false;
    };

    std::uint32_t width_;
    mutable FairSharedMutex mutex_;
    Index index_;
    Numbers numbers_;
    RowSlabs slabs_;
    Chunks<KeyOfRow> keys_;
};

}  // namespace freshrank
