// key -> number, exact: every one of the 2^64 keys is legal and no two keys share a number.
//
// One bucket is one cache line. A key that finds its home bucket full goes to the next one with
// room, and every full bucket it passed counts it in `overflow`; a search goes on past a bucket
// only while that counter is not zero. Removing a key counts it out again, so there are neither
// tombstones nor reserved keys.
//
// Homes keep the order of hashes. So the buckets grow by half where they are: from the last to the
// first, the keys of each home move up to their new one, into room that those before have left. An
// insert moves a few homes only, and no call ever waits for a copy of the whole.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "bucket.hpp"
#include "errors.hpp"
#include "hash.hpp"
#include "memory.hpp"

namespace freshrank {

// Buckets B, which hold one B::Value for every key.
template <class B>
class BucketMap {
  public:
    explicit BucketMap(std::uint64_t secret) : hash_(secret) { ensure(n_buckets_ - 1); }

    std::uint64_t hash(std::uint64_t key) const { return hash_(key); }

    const B& home_bucket(std::uint64_t hash) const { return at(home(hash)); }

    // The key's value, or what is given for an absent one.
    typename B::Value value_or(std::uint64_t key, std::uint64_t hash,
                               typename B::Value absent) const {
        const Place place = locate(key, hash);
        return place.is_found ? at(place.at).value(place.slot) : absent;
    }

    // Makes room, so that the insert that follows cannot fail half-way.
    void prepare_insert(std::uint64_t hash) {
        if (!is_growing() && n_keys_ + 1 > load_limit(n_buckets_)) {
            grow_to(n_buckets_ * 3 / 2 + 1);
        }
        // One home for each call, so that the growth is over long before the next is due.
        if (is_growing()) {
            move_last_home();
        }
        ensure(first_with_room(home(hash)));
    }

    // The key must be absent.
    void insert(std::uint64_t key, typename B::Value value) {
        const std::uint64_t h = hash(key);
        prepare_insert(h);
        place(key, value, h);
        ++n_keys_;
    }

    // Returns the value the key had, or what is given for an absent one.
    typename B::Value erase_or(std::uint64_t key, typename B::Value absent) {
        const std::uint64_t h = hash(key);
        const Place place = locate(key, h);
        if (!place.is_found) {
            return absent;
        }
        --n_keys_;
        return remove(place.at, place.slot, home(h));
    }

    void reserve(std::uint64_t n_keys) {
        const std::uint64_t n_buckets = n_keys * 10 / B::load_times_ten + 1;
        if (n_buckets > n_next_) {
            finish_growth();
            grow_to(n_buckets);
            for (std::uint64_t n = 0; n < n_buckets; n += piece_buckets) {
                ensure(std::min(n + piece_buckets, n_buckets) - 1);
            }
            finish_growth();
        }
    }

    // Changes whenever buckets move.
    std::uint64_t n_moves() const { return n_moves_; }

    std::uint64_t n_bytes() const {
        std::uint64_t total = n_pieces() * (sizeof(Piece) + sizeof(B*));
        for (const auto& piece : pieces_) {
            total += piece.n_bytes();
        }
        return total;
    }

    // visit(bucket) for every bucket.
    template <class Visit>
    void each_bucket(Visit&& visit) const {
        for (const auto& piece : pieces_) {
            std::for_each_n(piece.data(), piece.size(), visit);
        }
    }

  private:
    using Piece = AlignedArray<B>;
    // 2 MiB, a huge page each; the first alone may be smaller.
    static constexpr unsigned piece_bits = 15;
    static constexpr std::uint64_t piece_buckets = 1U << piece_bits;
    static constexpr std::uint64_t max_buckets = no_row;
    static constexpr std::uint64_t moves_ahead = 16;  // lines fetched before their turn

    static std::uint64_t load_limit(std::uint64_t n_buckets) {
        return n_buckets * B::load_times_ten / 10;
    }

    // Multiply-shift onto any number of buckets, in the order of hashes.
    static std::uint64_t home_of(std::uint64_t hash, std::uint64_t n_buckets) {
        return (hash >> 32) * n_buckets >> 32;
    }
    // Both are computed: which one holds no processor could guess.
    std::uint64_t home(std::uint64_t hash) const {
        const std::uint64_t old = home_of(hash, n_buckets_), next = home_of(hash, n_next_);
        return old < n_unmoved_ ? old : next;
    }

    B& at(std::uint64_t n) { return first_[n >> piece_bits][n & (piece_buckets - 1)]; }
    const B& at(std::uint64_t n) const { return first_[n >> piece_bits][n & (piece_buckets - 1)]; }
    std::size_t n_pieces() const { return pieces_.size(); }
    bool has(std::uint64_t n) const {
        const std::uint64_t piece = n >> piece_bits;
        return piece < n_pieces() && (n & (piece_buckets - 1)) < pieces_[piece].size();
    }
    // Memory for bucket n. There is some for every home, and behind every bucket that overflows.
    void ensure(std::uint64_t n) {
        if (has(n)) {
            return;
        }
        const std::uint64_t piece = n >> piece_bits;
        Piece bigger(piece == 0 ? std::bit_ceil(n + 1) : piece_buckets);
        if (piece >= n_pieces()) {
            first_.resize(piece + 1);
            pieces_.resize(piece + 1);
        }
        if (pieces_[piece].size() > 0) {
            std::memcpy(bigger.data(), pieces_[piece].data(), pieces_[piece].n_bytes());
        }
        pieces_[piece] = std::move(bigger);
        first_[piece] = pieces_[piece].data();
        ++n_moves_;
    }

    struct Place {
        std::uint64_t at;
        unsigned slot;
        bool is_found;
    };
    Place locate(std::uint64_t key, std::uint64_t hash) const {
        for (std::uint64_t n = home(hash);; ++n) {
            const B& bucket = at(n);
            const unsigned mask = bucket.match(key);
            if (mask != 0 || bucket.overflow == 0) {
                return {n, static_cast<unsigned>(std::countr_zero(mask)), mask != 0};
            }
        }
    }

    std::uint64_t first_with_room(std::uint64_t n) const {
        while (has(n) && at(n).count == B::n_slots) {
            ++n;
        }
        return n;
    }

    void place(std::uint64_t key, typename B::Value value, std::uint64_t hash) {
        std::uint64_t n = home(hash);
        for (; at(n).count == B::n_slots; ++n) {
            ensure(n + 1);
            B& full = at(n);
            if (full.overflow != B::overflow_stuck) {
                ++full.overflow;
            }
        }
        B& bucket = at(n);
        bucket.put(bucket.count, key, value);
        ++bucket.count;
    }

    typename B::Value remove(std::uint64_t n, unsigned slot, std::uint64_t key_home) {
        B& bucket = at(n);
        const auto value = bucket.value(slot);
        const unsigned last = bucket.count - 1U;
        bucket.put(slot, bucket.keys[last], bucket.value(last));
        --bucket.count;
        for (std::uint64_t passed = key_home; passed < n; ++passed) {
            B& full = at(passed);
            if (full.overflow != B::overflow_stuck) {
                --full.overflow;
            }
        }
        return value;
    }

    bool is_growing() const { return n_next_ != n_buckets_; }

    void grow_to(std::uint64_t n_buckets) {
        require(n_buckets > n_buckets_ && n_buckets < max_buckets,
                "the index cannot hold more keys");
        n_next_ = n_buckets;
    }

    void finish_growth() {
        while (is_growing()) {
            move_last_home();
        }
    }

    // Of the homes that have not moved the last: its keys are in it and the full buckets behind it.
    void move_last_home() {
        const std::uint64_t last = n_unmoved_ - 1;
        // New homes begin here and end one or two further up. Memory first, for them and for what
        // overflows: once keys are on their way nothing may fail.
        const std::uint64_t first_new = last * n_next_ / n_buckets_;
        ensure(std::min((last + 1) * n_next_ / n_buckets_, n_next_ - 1) + moves_ahead);
        ensure(first_new);
        if (last >= moves_ahead && has(first_new - moves_ahead)) {
            prefetch({&at(last - moves_ahead), sizeof(B)});
            prefetch({&at(first_new - moves_ahead), sizeof(B)});
        }
        moving_.clear();
        for (std::uint64_t n = last;; ++n) {
            for (unsigned slot = at(n).count; slot-- > 0;) {
                const std::uint64_t key = at(n).keys[slot];
                if (home_of(hash_(key), n_buckets_) == last) {
                    moving_.emplace_back(key, at(n).value(slot));
                    remove(n, slot, last);
                }
            }
            if (at(n).overflow == 0) {
                break;
            }
        }
        n_unmoved_ = last;
        for (const auto& [key, value] : moving_) {
            place(key, value, hash_(key));
        }
        if (n_unmoved_ == 0) {
            n_buckets_ = n_unmoved_ = n_next_;
        }
        ++n_moves_;
    }

    IndexHash hash_;
    std::uint64_t n_buckets_ = 4;
    std::uint64_t n_next_ = n_buckets_;     // while growing: the size to come
    std::uint64_t n_unmoved_ = n_buckets_;  // homes from here on are those of n_next_ buckets
    std::uint64_t n_keys_ = 0;
    std::uint64_t n_moves_ = 0;
    std::vector<Piece> pieces_;
    std::vector<B*> first_;  // bucket of every piece
    std::vector<std::pair<std::uint64_t, typename B::Value>> moving_;
};

// Numbers of rows by key.
class Index : public BucketMap<Bucket> {
  public:
    using BucketMap<Bucket>::BucketMap;

    std::uint32_t find(std::uint64_t key) const { return value_or(key, hash(key), no_row); }
    // Returns the number the key had, or no_row.
    std::uint32_t erase(std::uint64_t key) { return erase_or(key, no_row); }
};

}  // namespace freshrank
