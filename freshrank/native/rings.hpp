// The last n items of each key by (time, tie). Updates commute and may come twice; a read sees what
// happened strictly before it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <tuple>
#include <vector>

#include "map.hpp"

namespace freshrank::live {

struct Did {
    std::uint64_t key;
    std::int64_t ts;
    std::uint64_t tie;
    std::uint64_t item;
};

// Items of several keys: those of key i are items[offsets[i]..offsets[i + 1]), newest first.
struct Recents {
    std::vector<std::uint64_t> items;
    std::vector<std::int64_t> offsets{0};
};

class Rings {
  public:
    explicit Rings(std::size_t n_max) : n_max_(n_max) {}

    void add(const std::vector<Did>& did) {
        const std::lock_guard lock(mutex_);
        for (std::size_t i = 0; i < did.size(); ++i) {
            if (i + Map<Place>::n_ahead < did.size()) {
                map_.prefetch(did[i + Map<Place>::n_ahead].key);
            }
            add_one(did[i]);
        }
    }

    Recents read(const std::uint64_t* keys, const std::int64_t* ts, std::size_t n) const {
        const std::lock_guard lock(mutex_);
        Recents out;
        for (std::size_t i = 0; i < n; ++i) {
            read_one(keys[i], ts[i], out);
        }
        return out;
    }

    // Per request: reads, then adds its rows that `acted` names; ties count up from `first_tie`.
    // A request whose key is not known has nothing and adds nothing.
    Recents read_then_add(const std::int64_t* offsets, std::size_t n_requests,
                          const std::uint64_t* keys, const bool* is_known, const std::int64_t* ts,
                          const std::uint64_t* items, const bool* acted, std::uint64_t first_tie) {
        const std::lock_guard lock(mutex_);
        Recents out;
        for (std::size_t r = 0; r < n_requests; ++r) {
            if (r + Map<Place>::n_ahead < n_requests) {
                map_.prefetch(keys[r + Map<Place>::n_ahead]);
            }
            if (!is_known[r]) {
                out.offsets.push_back(out.offsets.back());
                continue;
            }
            read_one(keys[r], ts[r], out);
            for (auto i = static_cast<std::size_t>(offsets[r]);
                 i < static_cast<std::size_t>(offsets[r + 1]); ++i) {
                if (acted[i]) {
                    add_one({keys[r], ts[r], first_tie + i, items[i]});
                }
            }
        }
        return out;
    }

    std::vector<Did> entries() const {
        const std::lock_guard lock(mutex_);
        std::vector<Did> out;
        map_.for_each([&](std::uint64_t key, const Place& place) {
            const Kept* kept = kept_.data() + place.start;
            for (std::uint32_t i = 0; i < place.n; ++i) {
                out.push_back({key, kept[i].ts, kept[i].tie, kept[i].item});
            }
        });
        return out;
    }

    std::size_t size() const {
        const std::lock_guard lock(mutex_);
        return map_.size();
    }

  private:
    struct Place {
        std::uint64_t start = 0;
        std::uint32_t n = 0;
        bool is_empty() const { return n == 0; }
    };
    struct Kept {
        std::int64_t ts;
        std::uint64_t tie;
        std::uint64_t item;
    };

    void read_one(std::uint64_t key, std::int64_t ts, Recents& out) const {
        if (const Place* place = map_.find(key)) {
            const Kept* kept = kept_.data() + place->start;
            for (std::uint32_t i = place->n; i-- > 0;) {
                if (kept[i].ts < ts) {
                    out.items.push_back(kept[i].item);
                }
            }
        }
        out.offsets.push_back(static_cast<std::int64_t>(out.items.size()));
    }

    void add_one(const Did& did) {
        Place& place = map_.at(did.key);
        if (place.is_empty()) {
            place.start = kept_.size();
            kept_.resize(kept_.size() + n_max_);
        }
        Kept* kept = kept_.data() + place.start;
        const auto is_before = [](const Kept& left, const Kept& right) {
            return std::tie(left.ts, left.tie) < std::tie(right.ts, right.tie);
        };
        const Kept own{did.ts, did.tie, did.item};
        Kept* end = kept + place.n;
        Kept* at = std::lower_bound(kept, end, own, is_before);
        if (at != end && at->ts == own.ts && at->tie == own.tie) {
            return;
        }
        if (place.n < n_max_) {
            std::move_backward(at, end, end + 1);
            *at = own;
            ++place.n;
        } else if (at != kept) {  // else older than all that are kept
            std::move(kept + 1, at, kept);
            *(at - 1) = own;
        }
    }

    mutable std::mutex mutex_;
    std::size_t n_max_;
    Map<Place> map_;
    std::vector<Kept> kept_;
};

}  // namespace freshrank::live
