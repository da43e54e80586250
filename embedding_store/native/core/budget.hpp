// Bytes a table may hold, alone or together with others, turned into numbers of rows, tombstones
// and pending counts: these, unlike bytes, do not depend on how far each has grown.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "config.hpp"
#include "pool.hpp"

namespace freshrank {

// Shared by tables: each takes what it may come to hold before it holds it. A budget within another
// takes from both, or from neither.
class Budget {
  public:
    explicit Budget(std::uint64_t max_bytes, std::shared_ptr<Budget> within = nullptr)
        : max_bytes_(max_bytes), within_(std::move(within)) {}

    bool take(std::uint64_t n_bytes) {
        if (within_ != nullptr && !within_->take(n_bytes)) {
            return false;
        }
        for (std::uint64_t used = used_; used + n_bytes <= max_bytes_;) {
            if (used_.compare_exchange_weak(used, used + n_bytes)) {
                return true;
            }
        }
        if (within_ != nullptr) {
            within_->give_back(n_bytes);
        }
        return false;
    }
    void give_back(std::uint64_t n_bytes) {
        used_ -= n_bytes;
        if (within_ != nullptr) {
            within_->give_back(n_bytes);
        }
    }

    std::uint64_t max_bytes() const { return max_bytes_; }
    std::uint64_t used_bytes() const { return used_; }
    std::uint64_t left_bytes() const {
        const std::uint64_t left = max_bytes_ - used_;
        return within_ == nullptr ? left : std::min(left, within_->left_bytes());
    }

  private:
    std::uint64_t max_bytes_;
    std::atomic<std::uint64_t> used_{0};
    std::shared_ptr<Budget> within_;
};

// What one table may hold. Without a limit, everything.
class Room {
  public:
    // Takes one slab's worth of rows, or all there is of a budget that is not shared.
    Room(const Limits& limits, const RowSlabs& slabs, std::shared_ptr<Budget> budget);
    ~Room();
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;

    bool is_limited() const { return limits_.max_bytes != 0 || budget_ != nullptr; }
    std::uint64_t rows() const;
    std::uint64_t tombstones() const;
    std::uint64_t pending_bytes() const;
    // What all of these may take at most, growth included; 0 without a limit.
    std::uint64_t n_bytes() const { return is_limited() ? bytes_for(n_slabs_) : 0; }

    // A quarter more, or one slab, or false: then too until asked to try again.
    bool extend();
    void try_again() { is_spent_ = false; }

  private:
    bool extend_by(std::uint64_t n_slabs);
    std::uint64_t rows_bytes(std::uint64_t n_slabs) const;
    std::uint64_t tombstones_of(std::uint64_t n_slabs) const;
    std::uint64_t pending_bytes_of(std::uint64_t n_slabs) const;
    std::uint64_t bytes_for(std::uint64_t n_slabs) const;

    Limits limits_;
    std::uint64_t slab_rows_;
    std::uint64_t slab_bytes_;
    std::shared_ptr<Budget> budget_;
    std::uint64_t n_slabs_ = 0;
    bool is_spent_ = false;
};

}  // namespace freshrank
