// Entries of a batch by the share of the work that owns what they change.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "workers.hpp"

namespace freshrank {

// Every share tells a range of the entries apart, into lists of its own; then every share takes its
// lists of all ranges, which one after another are in the batch's order. Told without branches:
// whose an entry is no processor could guess.
class Owned {
  public:
    void reset(std::size_t n_entries, unsigned n_shares) {
        n_shares_ = n_shares;
        n_most_ = n_entries / n_shares + 1;
        entries_.resize((n_shares + 1) * n_shares * n_most_);
        n_listed_.resize(n_shares * (n_shares + 1));
    }

    // Of one range: tell(i, owner), owner being n_shares for nobody's; by one share alone.
    template <class Each>
    void tell(unsigned range, Each&& each) {
        std::uint32_t* const lists = entries_.data() + range * (n_shares_ + 1) * n_most_;
        std::array<std::size_t, max_threads + 1> n{};  // here: those of all share cache lines
        each([=, &n, n_most = n_most_](std::size_t i, unsigned owner) {
            lists[owner * n_most + n[owner]++] = static_cast<std::uint32_t>(i);
        });
        std::copy_n(n.data(), n_shares_ + 1, n_listed_.data() + range * (n_shares_ + 1));
    }

    // visit(entries) for every list of a share's.
    template <class Visit>
    void each(unsigned share, Visit&& visit) const {
        for (unsigned range = 0; range < n_shares_; ++range) {
            const std::size_t list = range * (n_shares_ + 1) + share;
            visit(std::span(entries_.data() + list * n_most_, n_listed_[list]));
        }
    }

  private:
    unsigned n_shares_ = 1;
    std::size_t n_most_ = 0;  // entries of a range
    std::vector<std::uint32_t> entries_;
    std::vector<std::size_t> n_listed_;
};

}  // namespace freshrank
