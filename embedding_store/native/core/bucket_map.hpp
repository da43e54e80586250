// key -> value, exact: every one of the 2^64 keys is legal and no two keys share a number.
//
// One bucket is one cache line. A key that finds its home bucket full goes to the next one with
// room, and every full bucket it passed counts it in `overflow`; a search goes on past a bucket
// only while that counter is not zero. Removing a key counts it out again, so there are neither
// tombstones nor reserved keys.
//
// Homes keep the order of hashes. So the buckets grow by a part where they are: from the last to
// the first, the keys of each home move up to their new one, into room that those before have left.
// An insert moves a few homes only, and no call ever waits for a copy of the whole or holds one.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "bucket_pages.hpp"
#include "errors.hpp"
#include "hash.hpp"
#include "memory.hpp"

namespace freshrank {

inline constexpr std::uint32_t no_row = std::numeric_limits<std::uint32_t>::max();

// Buckets B, which hold one B::Value for every key.
template <class B>
class BucketMap {
  public:
    explicit BucketMap(std::uint64_t secret, Tally* tally = nullptr)
        : hash_(secret), buckets_(tally) {
        buckets_.ensure(n_homes_ - 1);
    }

    std::uint64_t hash(std::uint64_t key) const { return hash_(key); }

    const B& home_bucket(std::uint64_t hash) const { return buckets_[home(hash)]; }

    // The bucket and slot of a key; no bucket if it is absent.
    std::pair<B*, unsigned> locate(std::uint64_t key) {
        const Found found = search(key, hash(key));
        return {found.is_any ? &buckets_[found.at] : nullptr, found.slot};
    }
    // The key's value, or what is given for an absent one.
    typename B::Value value_or(std::uint64_t key, std::uint64_t hash,
                               typename B::Value absent) const {
        const Found found = search(key, hash);
        return found.is_any ? buckets_[found.at].value(found.slot) : absent;
    }

    // visit(bucket) for those that are full where a key of this hash belongs, which may remove keys
    // of it; up to the first with room.
    template <class Visit>
    void each_full(std::uint64_t hash, Visit&& visit) {
        for (std::uint64_t n = home(hash); buckets_.has(n); ++n) {
            if (buckets_[n].count == B::n_slots) {
                visit(buckets_[n]);
            }
            if (buckets_[n].count < B::n_slots) {
                return;
            }
        }
    }

    // Makes room, so that the `place` that follows cannot fail. What fails here changes nothing.
    void prepare_insert(std::uint64_t hash) {
        if (!is_growing() && n_keys_ + 1 > load_limit(n_homes_) && n_homes_ < max_homes_) {
            grow();
        }
        for (std::uint64_t n = homes_per_insert_; n > 0 && is_growing(); --n) {
            move_last_home();
        }
        std::uint64_t n = home(hash);
        while (buckets_.has(n) && buckets_[n].count == B::n_slots) {
            ++n;
        }
        buckets_.ensure(n);
    }

    // The key must be absent, and its hash prepared for.
    void place(std::uint64_t key, std::uint64_t hash, typename B::Value value) {
        put(key, hash, value);
        ++n_keys_;
    }

    // The key must be absent.
    void insert(std::uint64_t key, typename B::Value value) {
        const std::uint64_t h = hash(key);
        prepare_insert(h);
        place(key, h, value);
    }

    // Returns the value the key had, or what is given for an absent one.
    typename B::Value erase_or(std::uint64_t key, typename B::Value absent) {
        const std::uint64_t h = hash(key);
        const Found found = search(key, h);
        if (!found.is_any) {
            return absent;
        }
        const auto value = buckets_[found.at].value(found.slot);
        remove(found.at, found.slot, home(h));
        --n_keys_;
        return value;
    }

    void reserve(std::uint64_t n_keys) {
        const std::uint64_t n_homes = homes_for(n_keys);
        if (n_homes <= n_next_) {
            return;
        }
        finish_growth();
        buckets_.ensure_all(n_homes);
        grow_to(n_homes);
        finish_growth();
    }

    // The most that n keys ever take.
    static std::uint64_t bytes_for(std::uint64_t n_keys) {
        return BucketPages<B>::bytes_for(homes_for(n_keys) + spare_buckets);
    }
    // From now on the map stays within bytes_for(n), given at most n keys. Only ever raised.
    void limit(std::uint64_t n_keys) {
        max_homes_ = homes_for(n_keys);
        buckets_.limit(max_homes_ + spare_buckets);
    }

    // Changes whenever buckets move.
    std::uint64_t n_moves() const { return n_moves_ + buckets_.n_moves(); }

    std::uint64_t n_bytes() const { return buckets_.n_bytes(); }

    // All of them, with and without keys.
    BucketPages<B>& buckets() { return buckets_; }
    const BucketPages<B>& buckets() const { return buckets_; }

    // visit(key, value) for every key with a hash from `first` to `last`, these included, each
    // once. Growing changes no hash: ranges visited one after another make up the whole, whatever
    // is inserted or removed in between.
    template <class Visit>
    void each_in_hash_range(std::uint64_t first, std::uint64_t last, Visit&& visit) const {
        const std::uint64_t last_home = home(last);
        // Between the homes that have not moved and the first of the others there is nothing.
        const std::uint64_t first_moved = n_unmoved_ * n_next_ / n_homes_;
        for (std::uint64_t n = home(first);; ++n) {
            const B& bucket = buckets_[n];
            for (unsigned slot = 0; slot < bucket.count; ++slot) {
                const std::uint64_t h = hash_(bucket.keys[slot]);
                if (first <= h && h <= last) {
                    visit(bucket.keys[slot], bucket.value(slot));
                }
            }
            if (bucket.overflow != 0) {  // some are in the next, also behind the last home
                continue;
            }
            if (n >= last_home) {
                return;
            }
            if (n + 1 >= n_unmoved_) {
                n = std::max(n, first_moved - 1);
            }
        }
    }

  private:
    // Behind the last home, for what it overflows with. At the highest load of 0.9 more than k keys
    // do so with odds of exp(-k / 5): a limit is then never passed.
    static constexpr std::uint64_t spare_buckets = 64;
    static constexpr std::uint64_t homes_ahead = 16;  // fetched before their turn to move

    static std::uint64_t load_limit(std::uint64_t n_homes) {
        return n_homes * B::load_times_ten / 10;
    }
    static std::uint64_t homes_for(std::uint64_t n_keys) {
        const std::uint64_t n =
            (std::max<std::uint64_t>(n_keys, 1) * 10 - 1) / B::load_times_ten + 1;
        require(n < no_row, "cannot reserve room for " + std::to_string(n_keys) + " keys");
        return n;
    }

    // Multiply-shift onto any number of buckets, in the order of hashes.
    static std::uint64_t home_of(std::uint64_t hash, std::uint64_t n_homes) {
        return (hash >> 32) * n_homes >> 32;
    }
    // Both are computed: which one holds no processor could guess.
    std::uint64_t home(std::uint64_t hash) const {
        const std::uint64_t old = home_of(hash, n_homes_), next = home_of(hash, n_next_);
        return old < n_unmoved_ ? old : next;
    }

    struct Found {
        std::uint64_t at;
        unsigned slot;
        bool is_any;
    };
    Found search(std::uint64_t key, std::uint64_t hash) const {
        for (std::uint64_t n = home(hash);; ++n) {
            const B& bucket = buckets_[n];
            const unsigned mask = bucket.match(key);
            if (mask != 0 || bucket.overflow == 0) {
                return {n, static_cast<unsigned>(std::countr_zero(mask)), mask != 0};
            }
        }
    }

    void put(std::uint64_t key, std::uint64_t hash, typename B::Value value) {
        std::uint64_t n = home(hash);
        for (; buckets_[n].count == B::n_slots; ++n) {
            B& full = buckets_[n];
            if (full.overflow != B::overflow_stuck) {
                ++full.overflow;
            }
        }
        B& bucket = buckets_[n];
        bucket.put(bucket.count, key, value);
        ++bucket.count;
    }

    void remove(std::uint64_t n, unsigned slot, std::uint64_t key_home) {
        B& bucket = buckets_[n];
        const unsigned last = bucket.count - 1U;
        bucket.put(slot, bucket.keys[last], bucket.value(last));
        --bucket.count;
        for (std::uint64_t passed = key_home; passed < n; ++passed) {
            B& full = buckets_[passed];
            if (full.overflow != B::overflow_stuck) {
                --full.overflow;
            }
        }
    }

    bool is_growing() const { return n_next_ != n_homes_; }

    void grow() {
        const std::uint64_t next = n_homes_ + n_homes_ / B::growth_divisor + 1;
        // Not almost to the limit: the little growth left would have to be done in a few inserts.
        const bool is_near = next + next / (2 * B::growth_divisor) >= max_homes_;
        grow_to(is_near ? max_homes_ : next);
    }

    void grow_to(std::uint64_t n_homes) {
        n_next_ = n_homes;
        // So many that the growth is over when the next is due.
        const std::uint64_t n_inserts = std::max(load_limit(n_next_), n_keys_ + 1) - n_keys_;
        homes_per_insert_ = std::max(B::homes_per_insert, n_homes_ / n_inserts + 1);
    }

    void finish_growth() {
        while (is_growing()) {
            move_last_home();
        }
    }

    // Of the homes that have not moved the last: its keys are in it and the full buckets behind it.
    void move_last_home() {
        const std::uint64_t last = n_unmoved_ - 1;
        // Their new homes are from here to one or two further up.
        const std::uint64_t first_new = last * n_next_ / n_homes_;
        const std::uint64_t last_new = std::min((last + 1) * n_next_ / n_homes_, n_next_ - 1);
        if (last >= homes_ahead && buckets_.has(first_new - homes_ahead)) {
            prefetch({&buckets_[last - homes_ahead], sizeof(B)});
            prefetch({&buckets_[first_new - homes_ahead], sizeof(B)});
        }
        list_moving(last);
        // Memory, even if none of them finds room before the last: then nothing can fail.
        buckets_.ensure(first_new);
        std::uint64_t n_free = 0;
        for (std::uint64_t n = last_new; n_free < moving_.size() || n == last_new; ++n) {
            buckets_.ensure(n);
            n_free += B::n_slots - buckets_[n].count;
        }
        for (const Moving& one : moving_) {
            remove(one.at, one.slot, last);
        }
        n_unmoved_ = last;
        for (const Moving& one : moving_) {
            put(one.key, one.hash, one.value);
        }
        if (n_unmoved_ == 0) {
            n_homes_ = n_unmoved_ = n_next_;
        }
        ++n_moves_;
    }

    // From the last slot of a bucket down: removing one moves only those behind it.
    void list_moving(std::uint64_t last) {
        moving_.clear();
        for (std::uint64_t n = last;; ++n) {
            const B& bucket = buckets_[n];
            for (unsigned slot = bucket.count; slot-- > 0;) {
                const std::uint64_t h = hash_(bucket.keys[slot]);
                if (home_of(h, n_homes_) == last) {
                    moving_.push_back({bucket.keys[slot], h, n, slot, bucket.value(slot)});
                }
            }
            if (bucket.overflow == 0) {
                return;
            }
        }
    }

    struct Moving {
        std::uint64_t key, hash, at;
        unsigned slot;
        typename B::Value value;
    };

    IndexHash hash_;
    std::uint64_t n_homes_ = 4;
    std::uint64_t n_next_ = n_homes_;     // while growing: the size to come
    std::uint64_t n_unmoved_ = n_homes_;  // homes from here on are those of n_next_ buckets
    std::uint64_t n_keys_ = 0;
    std::uint64_t n_moves_ = 0;
    std::uint64_t homes_per_insert_ = 0;
    std::uint64_t max_homes_ = no_row;
    BucketPages<B> buckets_;
    std::vector<Moving> moving_;
};

}  // namespace freshrank
