// Weights only, for scoring while deltas arrive.
//
// Protocol: readers share a lock for one batch, so that a batch is of one instant; a writer has it
// alone for at most `slice_keys` keys at a time, after encoding them outside. No reader ever sees
// half a row, and a large base delays it by one slice only; waiting writers go before new readers.
#pragma once

#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <vector>

#include "config.hpp"
#include "index.hpp"
#include "lock.hpp"
#include "packed_rows.hpp"
#include "pool.hpp"
#include "pooling.hpp"
#include "row_type.hpp"

namespace freshrank {

class ServingTable {
  public:
    struct Statistics {
        std::uint64_t rows, capacity, bytes, index_bytes, row_bytes;
    };

    ServingTable(std::uint32_t width, std::uint64_t initial_rows, RowType type = RowType::float32);

    std::uint32_t width() const { return width_; }
    RowType type() const { return type_; }
    void lookup(std::span<const std::uint64_t> ids, float* out, std::uint8_t* found) const;
    // One row per bag, and of how many of its ids there was a row.
    void lookup_pooled(const IdBags& bags, float* out, std::uint32_t* n_found) const;
    // Refuses rows of which the type cannot hold one, as upsert does before it changes anything.
    void check(std::span<const std::uint64_t> keys, const float* rows) const;
    // Where a key occurs twice the later row stays.
    void upsert(std::span<const std::uint64_t> keys, const float* rows);
    std::uint64_t remove(std::span<const std::uint64_t> keys);
    std::vector<std::uint64_t> keys() const;
    std::uint64_t size() const;
    Statistics statistics() const;

  private:
    template <class Use>
    void for_each_stored(std::span<const std::uint64_t> ids, Use&& use) const;
    void put(std::span<const std::uint64_t> keys, const std::uint8_t* encoded);

    std::uint32_t width_;
    RowType type_;
    RowDecoders::Decode decode_;  // null for float32
    mutable FairSharedMutex mutex_;
    Index index_;
    Numbers numbers_;
    PackedRows rows_;
};

}  // namespace freshrank
