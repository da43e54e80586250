#include "pending_view.hpp"

#include <algorithm>

namespace freshrank {

PendingView::PendingView(PendingCounts& counts)
    : counts_(counts),
      clock_s_(counts.clock_s_),
      first_bin_(counts.first_bin_),
      kept_(random_secret()) {
    entries_.reserve(counts.size());
}

void PendingView::keep(std::uint64_t id, PendingBucket::Value value) {
    if (is_gathered() || part_of(counts_.map_.hash(id)) < part_ || kept_.find(id) != nullptr) {
        return;
    }
    const std::uint32_t seen_s = counts_.rules_.seen_s(value.unit, clock_s_);
    const bool was_there = value.count != 0 && was_counted(seen_s);
    kept_.insert({id, was_there ? value.count : 0, seen_s});
}

bool PendingView::gather() {
    if (is_gathered()) {
        return gather_kept();
    }
    constexpr std::uint64_t length = ~std::uint64_t{0} / n_parts + 1;
    const std::uint64_t first = part_ * length;
    counts_.map_.each_in_hash_range(
        first, first + (length - 1), [&](std::uint64_t key, PendingBucket::Value value) {
            const std::uint32_t seen_s = counts_.rules_.seen_s(value.unit, clock_s_);
            if (was_counted(seen_s) && kept_.find(key) == nullptr) {
                entries_.push_back({key, value.count, seen_s});
            }
        });
    ++part_;
    return true;
}

bool PendingView::gather_kept() {
    const std::uint32_t n_kept = kept_.numbers().high_water();
    const std::uint32_t end = std::min(n_kept, next_kept_ + slice);
    for (; next_kept_ < end; ++next_kept_) {
        if (const Kept& kept = kept_.at(next_kept_); kept.count != 0) {
            entries_.push_back({kept.key, kept.count, kept.seen_s});
        }
    }
    return next_kept_ < n_kept;
}

}  // namespace freshrank
