// key -> number, exact: every one of the 2^64 keys is legal and no two keys share a number.
//
// One bucket is one cache line. A key that finds its home bucket full goes to the next one with
// room, and every full bucket it passed counts it in `overflow`; a search goes on past a bucket
// only while that counter is not zero. Removing a key counts it out again, so there are neither
// tombstones nor reserved keys. Shards grow one at a time, each by half of itself.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>

#include "errors.hpp"
#include "hash.hpp"
#include "memory.hpp"

namespace freshrank {

inline constexpr std::uint32_t no_row = std::numeric_limits<std::uint32_t>::max();

struct alignas(line_bytes) Bucket {
    static constexpr unsigned n_slots = 5;
    // At this value the counter stays for good: correct, only slower, until the shard grows.
    static constexpr std::uint16_t overflow_stuck = 0xffff;

    std::uint64_t keys[n_slots];
    std::uint32_t rows[n_slots];
    std::uint16_t count;
    std::uint16_t overflow;

    // Bit i is set when slot i holds the key. No branches: mispredictions cost more than compares.
    unsigned match(std::uint64_t key) const {
        const auto bit = [&](unsigned i) { return static_cast<unsigned>(keys[i] == key) << i; };
        return (bit(0) | bit(1) | bit(2) | bit(3) | bit(4)) & used();
    }

    // One bit for every slot in use.
    unsigned used() const { return (1U << count) - 1U; }

    struct Answer {
        std::uint32_t row;
        bool is_undecided;  // not here, but perhaps in a later bucket
    };
    // What a match means, free of branches again: when a shard is full about one key in six lives
    // outside its home bucket, and a misprediction for each costs more than asking it once more.
    Answer answer(unsigned match_mask) const {
        const int slot = std::countr_zero(match_mask | 1U << (n_slots - 1));
        const bool is_absent = match_mask == 0;
        return {is_absent ? no_row : rows[slot],
                (static_cast<unsigned>(is_absent) & static_cast<unsigned>(overflow != 0)) != 0};
    }
};
static_assert(sizeof(Bucket) == line_bytes, "one probe must touch one cache line");

class Index {
  public:
    static constexpr unsigned shard_bits = 3;
    static constexpr unsigned n_shards = 1U << shard_bits;
    static constexpr std::uint32_t min_buckets = 2;

    explicit Index(std::uint64_t secret) : hash_(secret) {
        for (auto& shard : shards_) {
            shard.resize(min_buckets);
        }
    }

    std::uint64_t hash(std::uint64_t key) const { return hash_(key); }

    const Bucket& home_bucket(std::uint64_t hash) const {
        const Shard& shard = shard_of(hash);
        return shard.buckets.data()[shard.home(hash)];
    }

    std::uint32_t find(std::uint64_t key, std::uint64_t hash) const {
        const Shard& shard = shard_of(hash);
        const Bucket* buckets = shard.buckets.data();
        std::uint32_t at = shard.home(hash);
        for (std::uint32_t n_probes = 0; n_probes < shard.n_buckets; ++n_probes) {
            const Bucket& bucket = buckets[at];
            const unsigned mask = bucket.match(key);
            if (mask != 0) {
                return bucket.rows[std::countr_zero(mask)];
            }
            if (bucket.overflow == 0) {
                return no_row;
            }
            at = shard.next(at);
        }
        return no_row;
    }

    std::uint32_t find(std::uint64_t key) const { return find(key, hash(key)); }

    // Makes room, so that the insert that follows cannot fail half-way.
    void prepare_insert(std::uint64_t hash) {
        Shard& shard = shard_of(hash);
        if (shard.n_keys + 1 > limit(shard.n_buckets)) {
            grow(shard, shard.n_buckets + shard.n_buckets / 2 + 1);
        }
    }

    // The key must be absent.
    void insert(std::uint64_t key, std::uint32_t row) {
        const std::uint64_t h = hash(key);
        prepare_insert(h);
        shard_of(h).place(key, row, h);
    }

    // Returns the number the key had, or no_row.
    std::uint32_t erase(std::uint64_t key) {
        const std::uint64_t h = hash(key);
        return shard_of(h).erase(key, h);
    }

    void reserve(std::uint64_t n_keys) {
        // A tenth more than the even share: shards fill unevenly.
        const std::uint64_t per_shard = n_keys / n_shards + n_keys / (n_shards * 10) + 1;
        const std::uint64_t n_buckets = per_shard * load_divisor / load_times_slots + 1;
        require(n_buckets < no_row, "cannot reserve room for " + std::to_string(n_keys) + " keys");
        for (auto& shard : shards_) {
            if (n_buckets > shard.n_buckets) {
                grow(shard, static_cast<std::uint32_t>(n_buckets));
            }
        }
    }

    // Changes whenever buckets move.
    std::uint64_t n_growths() const { return n_growths_; }

    std::uint64_t n_bytes() const {
        std::uint64_t total = 0;
        for (const auto& shard : shards_) {
            total += shard.buckets.n_bytes();
        }
        return total;
    }

  private:
    // Load at most 0.72 = 3.6 of 5 slots: measured best between memory and second probes.
    static constexpr std::uint64_t load_times_slots = 36;
    static constexpr std::uint64_t load_divisor = 10;
    static std::uint64_t limit(std::uint32_t n_buckets) {
        return n_buckets * load_times_slots / load_divisor;
    }

    struct Shard {
        AlignedArray<Bucket> buckets;
        std::uint32_t n_buckets = 0;
        std::uint64_t n_keys = 0;

        void resize(std::uint32_t n) {
            buckets = AlignedArray<Bucket>(n);
            n_buckets = n;
            n_keys = 0;
        }

        // Multiply-shift onto any number of buckets. It keeps the order of hashes, so growing
        // walks the old and the new array front to back, at the speed of memory.
        std::uint32_t home(std::uint64_t hash) const {
            return static_cast<std::uint32_t>(((hash << shard_bits) >> 32) * n_buckets >> 32);
        }

        std::uint32_t next(std::uint32_t at) const { return at + 1 == n_buckets ? 0 : at + 1; }

        void place(std::uint64_t key, std::uint32_t row, std::uint64_t hash) {
            expects(n_keys < std::uint64_t{n_buckets} * Bucket::n_slots, "an index shard is full");
            std::uint32_t at = home(hash);
            while (buckets.data()[at].count == Bucket::n_slots) {
                Bucket& full = buckets.data()[at];
                if (full.overflow != Bucket::overflow_stuck) {
                    ++full.overflow;
                }
                at = next(at);
            }
            Bucket& bucket = buckets.data()[at];
            bucket.keys[bucket.count] = key;
            bucket.rows[bucket.count] = row;
            ++bucket.count;
            ++n_keys;
        }

        std::uint32_t erase(std::uint64_t key, std::uint64_t hash) {
            const std::uint32_t start = home(hash);
            std::uint32_t at = start;
            unsigned mask = 0;
            for (std::uint32_t n_probes = 0;; at = next(at)) {
                mask = buckets.data()[at].match(key);
                if (mask != 0) {
                    break;
                }
                if (buckets.data()[at].overflow == 0 || ++n_probes == n_buckets) {
                    return no_row;
                }
            }
            Bucket& bucket = buckets.data()[at];
            const auto slot = static_cast<unsigned>(std::countr_zero(mask));
            const std::uint32_t row = bucket.rows[slot];
            --bucket.count;
            bucket.keys[slot] = bucket.keys[bucket.count];
            bucket.rows[slot] = bucket.rows[bucket.count];
            for (std::uint32_t passed = start; passed != at; passed = next(passed)) {
                Bucket& full = buckets.data()[passed];
                if (full.overflow != Bucket::overflow_stuck) {
                    --full.overflow;
                }
            }
            --n_keys;
            return row;
        }
    };

    Shard& shard_of(std::uint64_t hash) { return shards_[hash >> (64 - shard_bits)]; }
    const Shard& shard_of(std::uint64_t hash) const { return shards_[hash >> (64 - shard_bits)]; }

    void grow(Shard& shard, std::uint32_t n_buckets) {
        require(n_buckets > shard.n_buckets, "the index cannot hold more keys");
        Shard bigger;
        bigger.resize(n_buckets);
        for (std::uint32_t b = 0; b < shard.n_buckets; ++b) {
            const Bucket& bucket = shard.buckets.data()[b];
            for (unsigned i = 0; i < bucket.count; ++i) {
                bigger.place(bucket.keys[i], bucket.rows[i], hash_(bucket.keys[i]));
            }
        }
        shard = std::move(bigger);
        ++n_growths_;
    }

    IndexHash hash_;
    std::uint64_t n_growths_ = 0;
    std::array<Shard, n_shards> shards_;
};

}  // namespace freshrank
