// The calls of a session that write, and those that compare all there is.
#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "fuzz/session.hpp"

namespace freshrank::fuzz {

void Session::apply() {
    const auto ids = some_ids();
    const auto gradients = some_values(ids.size() * model_.config.width());
    const auto n_rows =
        on_all([&](Table& table) { return One{table.apply(ids, gradients.data())}; });
    check(n_rows->front() == model_.apply(ids, gradients.data()), "every row steps once");
}

// Ids in bags of 0, 1 or 2; the last bag ends where the ids do.
std::vector<std::int64_t> Session::some_offsets(std::size_t n_ids) {
    std::vector<std::int64_t> offsets{0};
    const std::uint8_t from = input_.byte();
    while (offsets.back() < static_cast<std::int64_t>(n_ids)) {
        const auto n = static_cast<std::int64_t>((from >> offsets.size() % 7) % 4);
        offsets.push_back(std::min(offsets.back() + (n == 3 ? 1 : n), std::int64_t(n_ids)));
        if (from == 0) {
            offsets.back() = static_cast<std::int64_t>(n_ids);
        }
    }
    return offsets;
}

void Session::lookup_pooled() {
    const auto ids = some_ids();
    const auto offsets = some_offsets(ids.size());
    const auto pooling = static_cast<Pooling>(input_.below(3));
    const std::size_t n = offsets.size() - 1;
    const auto gradients = some_values(n * model_.config.width());
    const IdBags bags{ids, offsets, pooling};
    const auto pooled = on_all([&](Table& table) {
        std::vector<float> out(gradients.size());
        table.lookup_pooled(bags, out.data());
        return out;
    });
    if (pooling != Pooling::sum) {
        return;
    }
    compare_pooled(ids, offsets, pooled->data(), model_.config.width());
    on_all([&](Table& table) { return One{table.apply_pooled(bags, gradients.data())}; });
    model_.apply(ids, spread(gradients.data(), offsets, model_.config.width()).data());
}

// What every id of a bag gets of the bag's gradient, when the rows were summed.
std::vector<float> Session::spread(const float* gradients, const std::vector<std::int64_t>& offsets,
                                   std::size_t stride) const {
    std::vector<float> shares;
    for (std::size_t bag = 0; bag + 1 < offsets.size(); ++bag, gradients += stride) {
        for (std::int64_t i = offsets[bag]; i < offsets[bag + 1]; ++i) {
            shares.insert(shares.end(), gradients, gradients + model_.config.width());
        }
    }
    return shares;
}

void Session::compare_pooled(const std::vector<std::uint64_t>& ids,
                             const std::vector<std::int64_t>& offsets, const float* pooled,
                             std::size_t stride) const {
    for (std::size_t bag = 0; model_.has_weights() && bag + 1 < offsets.size(); ++bag) {
        std::vector<float> sum(model_.config.width());
        for (std::int64_t i = offsets[bag]; i < offsets[bag + 1]; ++i) {
            const auto own = model_.rows.find(ids[static_cast<std::size_t>(i)]);
            for (std::size_t c = 0; own != model_.rows.end() && c < sum.size(); ++c) {
                sum[c] += own->second.weights[c];
            }
        }
        check(std::equal(sum.begin(), sum.end(), pooled + bag * stride), "a bag is its rows' sum");
    }
}

// A batch of two slots of the table, of which one id may come up in both.
void Session::read_and_learn() {
    const auto ids = some_ids();
    const auto offsets = some_offsets(ids.size());
    const std::size_t n = offsets.size() - 1;
    const auto is_counted = std::make_unique<bool[]>(n);
    std::vector<std::uint64_t> requests(n);
    for (std::size_t i = 0; i < n; ++i) {
        requests[i] = i / 2;
        is_counted[i] = i % 5 != 4;
    }
    const std::uint32_t now_s = some_time_s();
    const std::size_t stride = 2 * model_.config.width();
    const std::span counted(is_counted.get(), n);
    const Bags first{{ids, offsets, Pooling::sum}, counted, 0};
    const Bags second{{ids, offsets, Pooling::sum}, counted, 1};
    const auto gradients = some_values(n * stride + 1);  // a pointer even where n is 0
    const auto pooled = on_all([&](Table& table) {
        std::vector<float> out(gradients.size());
        table.read(std::array{first, second}, requests, now_s, 2, out.data());
        return out;
    });
    std::set<std::pair<std::uint64_t, std::uint64_t>> seen;
    std::vector<std::uint32_t> counts(ids.size());
    for (std::size_t bag = 0; bag < n; ++bag) {
        for (auto i = static_cast<std::size_t>(offsets[bag]);
             static_cast<std::int64_t>(i) < offsets[bag + 1]; ++i) {
            counts[i] = is_counted[bag] && seen.emplace(requests[bag], ids[i]).second ? 1 : 0;
        }
    }
    count(ids, counts, now_s);
    compare_pooled(ids, offsets, pooled->data(), stride);
    compare_pooled(ids, offsets, pooled->data() + stride / 2, stride);
    on_all([&](Table& table) { return One{table.learn(n, 2, gradients.data())}; });
    std::vector<std::uint64_t> twice(ids);
    twice.insert(twice.end(), ids.begin(), ids.end());
    auto shares = spread(gradients.data(), offsets, stride);
    const auto others = spread(gradients.data() + stride / 2, offsets, stride);
    shares.insert(shares.end(), others.begin(), others.end());
    model_.apply(twice, shares.data());
}

void Session::expire() {
    const std::uint32_t now_s = some_time_s();
    const std::uint64_t max_rows = input_.one_of({everything, std::uint64_t{3}});
    const auto n_removed = on_all([&](Table& table) { return One{table.expire(now_s, max_rows)}; });
    model_.move_clock(now_s);
    const auto is_stale = [&](const ModelRow& row) { return model_.is_stale(row.last_seen_s); };
    const auto stale = sorted_keys(model_.rows, is_stale);
    std::vector<std::uint8_t> is_left(stale.size());
    tables_[0]->contains(stale, is_left.data());
    const std::uint64_t n_rows = model_.rows.size();
    const std::uint64_t n_above = n_rows - std::min(n_rows, model_.config.limits.min_rows);
    const std::uint64_t n_at_most = std::min({std::uint64_t{stale.size()}, n_above, max_rows});
    check(n_removed->front() <= n_at_most, "only stale rows go, down to the floor");
    if (!model_.has_limits() && max_rows == everything) {
        check(n_removed->front() == n_at_most, "and all of them");
    }
    for (std::size_t i = 0; i < stale.size(); ++i) {
        if (is_left[i] == 0) {
            model_.remove(stale[i]);
        }
    }
}

void Session::erase() {
    const auto ids = some_ids();
    const auto n_removed = on_all([&](Table& table) { return One{table.erase(ids)}; });
    check(n_removed || model_.has_limits(), "refused only for want of room for tombstones");
    std::uint64_t n = 0;
    for (std::size_t i = 0; n_removed && i < ids.size(); ++i) {
        model_.pending.erase(ids[i]);
        if (model_.rows.contains(ids[i])) {
            model_.remove(ids[i]);
            ++n;
        }
    }
    check(!n_removed || n_removed->front() == n, "every row once");
}

void Session::close_version() {
    const auto closed = on_all([](Table& table) { return One{table.advance()}; });
    check(closed->front() == model_.version++, "the version closed");
    if (input_.below(4) > 0) {
        return;
    }
    // What the replica has seen may be forgotten.
    const auto is_seen = [&](std::uint64_t version) { return version <= replicated_; };
    const auto gone = sorted_keys(model_.tombstones, is_seen);
    const auto n = on_all([&](Table& table) { return One{table.trim_tombstones(replicated_)}; });
    check(model_.has_limits() || n->front() == gone.size(), "as many trimmed");
    for (const std::uint64_t key : gone) {
        model_.tombstones.erase(key);
    }
}

}  // namespace freshrank::fuzz
