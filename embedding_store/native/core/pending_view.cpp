#include "pending_view.hpp"

#include <utility>

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
        return false;
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
    if (++part_ == n_parts) {
        for (std::uint32_t n = 0; n < kept_.numbers().high_water(); ++n) {
            if (const Kept& kept = kept_.at(n); kept.count != 0) {
                entries_.push_back({kept.key, kept.count, kept.seen_s});
            }
        }
        kept_ = RecordMap<Kept>(random_secret());
    }
    return true;
}

}  // namespace freshrank
