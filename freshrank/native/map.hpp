// Open addressing from any of the 2^64 keys to a small payload that knows by itself whether it is
// empty. 64 shards, so that growing copies a 64th of the entries at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/hash.hpp"

namespace freshrank::live {

template <class Payload>
class Map {
  public:
    struct Slot {
        std::uint64_t key = 0;
        Payload payload;
    };

    // Keys that lie this far ahead are asked for while others are worked on: memory takes 100 ns.
    static constexpr std::size_t n_ahead = 12;

    std::size_t size() const {
        std::size_t n = 0;
        for (const Shard& shard : shards_) {
            n += shard.n_used;
        }
        return n;
    }

    void prefetch(std::uint64_t key) const {
        const std::uint64_t h = hash_(key);
        const Shard& shard = shards_[h >> shift];
        __builtin_prefetch(&shard.slots[h & shard.mask]);
    }

    const Payload* find(std::uint64_t key) const {
        const std::uint64_t h = hash_(key);
        const Slot& slot = shards_[h >> shift].probe(key, h);
        return slot.payload.is_empty() ? nullptr : &slot.payload;
    }

    // The payload of the key; empty when it is new, and the caller must fill it.
    Payload& at(std::uint64_t key) {
        const std::uint64_t h = hash_(key);
        Shard& shard = shards_[h >> shift];
        Slot* slot = &shard.probe(key, h);
        if (slot->payload.is_empty()) {
            if ((shard.n_used + 1) * 4 > shard.slots.size() * 3) {
                grow(shard);
                slot = &shard.probe(key, h);
            }
            slot->key = key;
            ++shard.n_used;
        }
        return slot->payload;
    }

    template <class Visit>
    void for_each(Visit visit) const {
        for (const Shard& shard : shards_) {
            for (const Slot& slot : shard.slots) {
                if (!slot.payload.is_empty()) {
                    visit(slot.key, slot.payload);
                }
            }
        }
    }

    // Looks at the next `n` slots, round and round, and removes what is stale.
    template <class IsStale>
    void sweep(std::size_t n, IsStale is_stale) {
        for (; n > 0; --n) {
            Shard& shard = shards_[at_shard_];
            if (at_slot_ >= shard.slots.size()) {
                at_slot_ = 0;
                at_shard_ = (at_shard_ + 1) % n_shards;
                continue;
            }
            const Payload& payload = shard.slots[at_slot_].payload;
            if (!payload.is_empty() && is_stale(payload)) {
                erase(shard, at_slot_);  // another entry may have moved here: look again
            } else {
                ++at_slot_;
            }
        }
    }

  private:
    static constexpr std::size_t n_shards = 64;
    static constexpr unsigned shift = 58;

    struct Shard {
        std::vector<Slot> slots = std::vector<Slot>(8);
        std::uint64_t mask = 7;
        std::size_t n_used = 0;

        const Slot& probe(std::uint64_t key, std::uint64_t h) const {
            std::uint64_t i = h & mask;
            while (!slots[i].payload.is_empty() && slots[i].key != key) {
                i = (i + 1) & mask;
            }
            return slots[i];
        }
        Slot& probe(std::uint64_t key, std::uint64_t h) {
            return const_cast<Slot&>(std::as_const(*this).probe(key, h));
        }
    };

    void grow(Shard& shard) {
        Shard larger;
        larger.slots = std::vector<Slot>(shard.slots.size() * 2);
        larger.mask = larger.slots.size() - 1;
        larger.n_used = shard.n_used;
        for (const Slot& slot : shard.slots) {
            if (!slot.payload.is_empty()) {
                larger.probe(slot.key, hash_(slot.key)) = slot;
            }
        }
        shard = std::move(larger);
    }

    // Closes the gap with entries that a search would otherwise no longer reach.
    void erase(Shard& shard, std::uint64_t gap) {
        for (std::uint64_t i = (gap + 1) & shard.mask; !shard.slots[i].payload.is_empty();
             i = (i + 1) & shard.mask) {
            const std::uint64_t home = hash_(shard.slots[i].key) & shard.mask;
            if (((i - home) & shard.mask) >= ((i - gap) & shard.mask)) {
                shard.slots[gap] = shard.slots[i];
                gap = i;
            }
        }
        shard.slots[gap] = Slot{};
        --shard.n_used;
    }

    IndexHash hash_{random_secret()};
    std::array<Shard, n_shards> shards_;
    std::size_t at_shard_ = 0, at_slot_ = 0;
};

}  // namespace freshrank::live
