// What one batch meets, each once.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace freshrank {

// The distinct keys of one batch. Kept from batch to batch, so that its memory is.
template <class Key>
class Distinct {
  public:
    // Forgets what it holds; then takes up to n_max keys.
    void reset(std::size_t n_max) {
        const std::size_t n_slots = std::bit_ceil(std::max<std::size_t>(2 * n_max, 16));
        slots_.assign(n_slots, empty);
        shift_ = 64 - static_cast<unsigned>(std::countr_zero(n_slots));
        keys_.clear();
        keys_.reserve(n_max);
    }

    // Returns whether it is new. Equal keys have equal hashes.
    bool add(const Key& key, std::uint64_t hash) {
        std::size_t at = (hash * 0x9e3779b97f4a7c15ULL) >> shift_;
        while (slots_[at] != empty) {
            if (keys_[slots_[at]] == key) {
                return false;
            }
            at = (at + 1) & (slots_.size() - 1);
        }
        slots_[at] = static_cast<std::uint32_t>(keys_.size());
        keys_.push_back(key);
        return true;
    }

  private:
    static constexpr std::uint32_t empty = ~std::uint32_t{0};
    std::vector<std::uint32_t> slots_;
    std::vector<Key> keys_;
    unsigned shift_ = 0;
};

}  // namespace freshrank
