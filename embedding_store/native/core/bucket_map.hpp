// key -> value, exact: every one of the 2^64 keys is legal and no two keys share a number.
//
// One bucket is one cache line. A key that finds its home bucket full goes to the next one with
// room, and every full bucket it passed counts it in `overflow`; a search goes on past a bucket
// only while that counter is not zero. Removing a key counts it out again, so there are neither
// tombstones nor reserved keys. Shards grow one at a time, each by a part of
// itself.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "errors.hpp"
#include "hash.hpp"
#include "memory.hpp"

namespace freshrank {

inline constexpr std::uint32_t no_row = std::numeric_limits<std::uint32_t>::max();

// The shards of buckets B, which hold for every key one B::Value.
template <class B>
class BucketMap {
  public:
    static constexpr unsigned n_shards = 1U << B::shard_bits;

    explicit BucketMap(std::uint64_t secret, Tally* tally = nullptr)
        : hash_(secret), tally_(tally) {
        for (auto& shard : shards_) {
            shard.resize(B::min_buckets, tally_);
        }
    }

    std::uint64_t hash(std::uint64_t key) const { return hash_(key); }

    const B& home_bucket(std::uint64_t hash) const {
        const Shard& shard = shard_of(hash);
        return shard.buckets.data()[shard.home(hash)];
    }

    // The bucket and slot of a key; no bucket if it is absent.
    std::pair<B*, unsigned> locate(std::uint64_t key) {
        const std::uint64_t h = hash(key);
        Shard& shard = shard_of(h);
        const auto place = shard.locate(key, h);
        return {place.is_found ? shard.buckets.data() + place.at : nullptr, place.slot};
    }
    // The key's value, or what is given for an absent one.
    typename B::Value value_or(std::uint64_t key, std::uint64_t hash,
                               typename B::Value absent) const {
        const Shard& shard = shard_of(hash);
        const auto place = shard.locate(key, hash);
        return place.is_found ? shard.buckets.data()[place.at].value(place.slot) : absent;
    }

    // Makes room, so that the insert that follows cannot fail half-way. Returns whether there is
    // any: always, but for a shard at its limit.
    bool prepare_insert(std::uint64_t hash) {
        Shard& shard = shard_of(hash);
        if (shard.n_keys + 1 <= load_limit(shard.n_buckets)) {
            return true;
        }
        if (shard.n_buckets >= max_buckets_) {
            return shard.n_keys < std::uint64_t{shard.n_buckets} * B::n_slots;
        }
        require(shard.n_buckets < no_row / 2, "the index cannot hold more keys");
        grow(shard,
             std::min(max_buckets_, shard.n_buckets + shard.n_buckets / B::growth_divisor + 1));
        return true;
    }

    // The key must be absent.
    void insert(std::uint64_t key, typename B::Value value) {
        const std::uint64_t h = hash(key);
        prepare_insert(h);
        shard_of(h).place(key, value, h);
    }

    // Returns the value the key had, or what is given for an absent one.
    typename B::Value erase_or(std::uint64_t key, typename B::Value absent) {
        const std::uint64_t h = hash(key);
        return shard_of(h).erase(key, h, absent);
    }

    void reserve(std::uint64_t n_keys) {
        for (auto& shard : shards_) {
            if (buckets_for(n_keys) > shard.n_buckets) {
                grow(shard, buckets_for(n_keys));
            }
        }
    }

    // From now on no shard grows beyond its share of n keys: all stay within bytes_for(n).
    void limit(std::uint64_t n_keys) { max_buckets_ = buckets_for(n_keys); }

    // Room for n keys, and for the copy of the one shard that grows.
    static std::uint64_t bytes_for(std::uint64_t n_keys) {
        return (n_shards + 1) * std::uint64_t{buckets_for(n_keys)} * sizeof(B);
    }

    // Changes whenever buckets move.
    std::uint64_t n_moves() const { return n_moves_; }

    std::uint64_t n_bytes() const {
        std::uint64_t total = 0;
        for (const auto& shard : shards_) {
            total += shard.buckets.n_bytes();
        }
        return total;
    }

    // visit(bucket) for every bucket.
    template <class Visit>
    void each_bucket(Visit&& visit) {
        for (Shard& shard : shards_) {
            for (std::uint32_t b = 0; b < shard.n_buckets; ++b) {
                visit(shard.buckets.data()[b]);
            }
        }
    }
    template <class Visit>
    void each_bucket(Visit&& visit) const {
        for (const Shard& shard : shards_) {
            for (std::uint32_t b = 0; b < shard.n_buckets; ++b) {
                visit(shard.buckets.data()[b]);
            }
        }
    }
    std::uint32_t n_buckets(unsigned shard) const { return shards_[shard].n_buckets; }
    B& bucket(unsigned shard, std::uint32_t b) { return shards_[shard].buckets.data()[b]; }

  private:
    static std::uint64_t load_limit(std::uint32_t n_buckets) {
        return n_buckets * B::load_times_ten / 10;
    }
    // Six standard deviations above the even share: shards fill unevenly.
    static std::uint32_t buckets_for(std::uint64_t n_keys) {
        const std::uint64_t even = n_keys / n_shards;
        const std::uint64_t n =
            (even + static_cast<std::uint64_t>(6 * std::sqrt(static_cast<double>(even))) + 8) * 10 /
                B::load_times_ten +
            1;
        require(n < no_row, "cannot reserve room for " + std::to_string(n_keys) + " keys");
        return static_cast<std::uint32_t>(n);
    }

    struct Shard {
        AlignedArray<B> buckets;
        std::uint32_t n_buckets = 0;
        std::uint64_t n_keys = 0;

        void resize(std::uint32_t n, Tally* tally) {
            buckets = AlignedArray<B>(n, Fill::zeros, tally);
            n_buckets = n;
            n_keys = 0;
        }

        // Multiply-shift onto any number of buckets. It keeps the order of hashes, so growing
        // walks the old and the new array front to back, at the speed of memory.
        std::uint32_t home(std::uint64_t hash) const {
            return static_cast<std::uint32_t>(((hash << B::shard_bits) >> 32) * n_buckets >> 32);
        }

        std::uint32_t next(std::uint32_t at) const { return at + 1 == n_buckets ? 0 : at + 1; }

        struct Place {
            std::uint32_t at;
            unsigned slot;
            bool is_found;
        };
        Place locate(std::uint64_t key, std::uint64_t hash) const {
            std::uint32_t at = home(hash);
            for (std::uint32_t n_probes = 0; n_probes < n_buckets; ++n_probes) {
                const B& bucket = buckets.data()[at];
                const unsigned mask = bucket.match(key);
                if (mask != 0) {
                    return {at, static_cast<unsigned>(std::countr_zero(mask)), true};
                }
                if (bucket.overflow == 0) {
                    break;
                }
                at = next(at);
            }
            return {0, 0, false};
        }

        void place(std::uint64_t key, typename B::Value value, std::uint64_t hash) {
            expects(n_keys < std::uint64_t{n_buckets} * B::n_slots, "an index shard is full");
            std::uint32_t at = home(hash);
            while (buckets.data()[at].count == B::n_slots) {
                B& full = buckets.data()[at];
                if (full.overflow != B::overflow_stuck) {
                    ++full.overflow;
                }
                at = next(at);
            }
            B& bucket = buckets.data()[at];
            bucket.put(bucket.count, key, value);
            ++bucket.count;
            ++n_keys;
        }

        typename B::Value erase(std::uint64_t key, std::uint64_t hash, typename B::Value absent) {
            const Place place = locate(key, hash);
            if (!place.is_found) {
                return absent;
            }
            B& bucket = buckets.data()[place.at];
            const auto value = bucket.value(place.slot);
            const unsigned last = bucket.count - 1U;
            bucket.put(place.slot, bucket.keys[last], bucket.value(last));
            --bucket.count;
            for (std::uint32_t passed = home(hash); passed != place.at; passed = next(passed)) {
                B& full = buckets.data()[passed];
                if (full.overflow != B::overflow_stuck) {
                    --full.overflow;
                }
            }
            --n_keys;
            return value;
        }
    };

    Shard& shard_of(std::uint64_t hash) { return shards_[hash >> (64 - B::shard_bits)]; }
    const Shard& shard_of(std::uint64_t hash) const {
        return shards_[hash >> (64 - B::shard_bits)];
    }

    void grow(Shard& shard, std::uint32_t n_buckets) {
        Shard bigger;
        bigger.resize(n_buckets, tally_);
        for (std::uint32_t b = 0; b < shard.n_buckets; ++b) {
            const B& bucket = shard.buckets.data()[b];
            for (unsigned i = 0; i < bucket.count; ++i) {
                bigger.place(bucket.keys[i], bucket.value(i), hash_(bucket.keys[i]));
            }
        }
        shard = std::move(bigger);
        ++n_moves_;
    }

    IndexHash hash_;
    Tally* tally_;
    std::uint64_t n_moves_ = 0;
    std::uint32_t max_buckets_ = no_row;
    std::array<Shard, n_shards> shards_;
};

}  // namespace freshrank
