// Budgets under ASan: pending counts beside a plain map, floods, forged limits and sketches.
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/pending.hpp"
#include "core/snapshot_layout.hpp"
#include "core/table.hpp"
#include "tests/check.hpp"
#include "tests/files.hpp"

namespace freshrank {

namespace {

using testing::check;
using testing::refusal;
using testing::restore;

// Time runs on in seconds, in days and in leaps of years, and events come late by up to two ttl.
void pending_counts_mirror_a_plain_map(PendingRules rules) {
    Tally tally;
    PendingCounts counts(rules, {1, 2}, &tally);
    std::map<std::uint64_t, std::pair<std::uint32_t, std::uint32_t>> mirror;
    std::mt19937_64 random(3);
    std::uint64_t clock_s = 1000;
    for (int i = 0; i < 60'000; ++i) {
        const std::uint64_t leap = i % 10'000 == 0 ? 100'000'000 : (rules.ttl_s + 9) / 300 + 1;
        clock_s += random() % leap;
        counts.advance(clock_s);
        const std::uint64_t late = random() % 4 == 0 ? random() % (2 * rules.ttl_s + 9) : 0;
        const std::uint32_t now_s =  // the latest of a unit, so that rounding changes nothing
            rules.latest_s(rules.unit(static_cast<std::uint32_t>(clock_s - late % clock_s)));
        const std::uint64_t key = random() % 2000;
        auto& [count, seen_s] = mirror[key];
        if (rules.is_stale(seen_s, clock_s)) {
            count = 0;
            seen_s = 0;
        }
        const std::uint32_t known = count == 0 ? 0 : rules.decayed(count, seen_s, now_s);
        check(counts.find(key, now_s).count == known, "as many");
        const auto n = static_cast<std::uint32_t>(random() % 3);
        counts.add(key, {known}, n, now_s, 9);
        count = count != 0 || !rules.is_stale(now_s, clock_s) ? known + n : 0;
        seen_s = std::max(seen_s, now_s);
        if (random() % 50 == 0) {
            counts.erase(key);
            count = 0;
        }
        seen_s = count != 0 ? seen_s : 0;
        if (random() % 100 == 0) {
            counts.sweep(random() % 100);
        }
    }
    check(counts.size() <= mirror.size(), "at most every key");
}

TableConfig limited_config() {
    TableConfig config;
    config.dim = 4;
    config.optimizer.lr = 0.1;
    config.min_count = 2;
    config.ttl_s = 500;
    config.limits = {
        .max_bytes = 4'000'000, .pending_bytes = 100'000, .min_rows = 10, .count_half_life_s = 100};
    return config;
}

// Every call brings new ids, some often enough to be wanted whatever the threshold.
void flood(Table& table, std::uint64_t seed, std::uint32_t first_s, std::uint32_t n_calls) {
    std::mt19937_64 random(seed);
    std::vector<std::uint64_t> ids(3000);
    std::vector<std::uint32_t> counts(ids.size());
    std::vector<float> rows(ids.size() * table.config().width());
    for (std::uint32_t now_s = first_s; now_s < first_s + n_calls; ++now_s) {
        for (std::size_t i = 0; i < ids.size(); ++i) {
            ids[i] = i % 4 == 0 ? random() % 3000 : random();
            counts[i] = i % 3 == 0 ? 40 : 1;
        }
        table.lookup_or_admit(ids, counts, now_s, rows.data());
        table.apply(ids, rows.data());
        table.expire(now_s, 300);
        table.trim_tombstones(table.advance());
        const Statistics now = table.statistics();
        check(now.peak_bytes <= now.budget_bytes && now.budget_bytes <= 4'000'000, "within it");
    }
}

void floods_stay_within_the_budget_and_go_on_after_a_restore() {
    Table table(limited_config(), 0);
    flood(table, 1, 1, 60);
    const auto restored = restore({table.snapshot()});
    flood(table, 2, 61, 30);
    flood(*restored, 2, 61, 30);
    check(table.snapshot() == restored->snapshot(), "bit-equal");
    check(table.statistics().evicted > 1000, "rows were evicted");
    check(table.statistics().sketch_admitted > 0, "the sketch was full and in use");
}

template <class T>
std::vector<std::uint8_t> forge(std::vector<std::uint8_t> file, std::size_t at, T value) {
    std::memcpy(file.data() + at, &value, sizeof value);
    const std::size_t n_covered = file.size() - checksum_bytes;
    const std::uint64_t checksum = siphash24(file.data(), n_covered, checksum_key);
    std::memcpy(file.data() + n_covered, &checksum, sizeof checksum);
    return file;
}

void no_row_is_evicted_where_there_is_none() {
    const auto file = Table(limited_config(), 0).snapshot();
    const auto table =
        restore({forge(file, offsetof(SnapshotHeader, n_wanted), ~std::uint64_t{0})});
    flood(*table, 4, 1, 1);
    check(table->statistics().evicted == 0, "it is empty");
}

void bad_limits_of_a_snapshot_are_refused() {
    Table table(limited_config(), 0);
    flood(table, 3, 1, 20);
    const auto whole = table.snapshot();
    const auto refused = [&](std::size_t at, auto value, const std::string& said) {
        const std::string message = refusal([&] { restore({forge(whole, at, value)}); });
        check(message.find(said) != std::string::npos, message.c_str());
    };
    constexpr std::size_t limits = offsetof(SnapshotHeader, limits);
    refused(limits, std::uint64_t{1}, "max_bytes is 1");
    refused(limits + 8, std::uint64_t{5}, "pending_bytes is 5");
    refused(limits + 8, std::uint64_t{min_pending_bytes}, "budget too small");
    refused(limits + 28, 1U, "unknown values");
    refused(offsetof(SnapshotHeader, n_sketch_lines), std::uint64_t{1}, "its sketch of 1 lines");
    refused(offsetof(SnapshotHeader, n_sketch_lines), ~0ULL, "is truncated");
    refused(offsetof(SnapshotHeader, n_pending), ~0ULL / 16, "snapshot is");
    refused(offsetof(SnapshotHeader, n_sketch_counted), ~0ULL, "its sketch of");
    refused(offsetof(SnapshotHeader, evict_cursor), ~0U, "a cursor is out of range");
    SnapshotHeader header;
    std::memcpy(&header, whole.data(), sizeof header);
    const std::size_t pending = sizeof header + header.n_row_free * sizeof(std::uint32_t) +
                                header.n_tombstones * 2 * sizeof(std::uint64_t);
    const std::size_t sketch = pending + header.n_pending * sizeof(PendingCounts::Entry);
    check(header.n_sketch_lines > 0 && header.n_pending > 0, "both are there");
    constexpr std::size_t base = sizeof(Sketch::Line) - sizeof(std::uint32_t);
    refused(sketch + base, 0x1000U, "its sketch of");
    refused(sketch + base, 1U << 17, "its sketch of");
    refused(sketch - 4, ~0U, "last seen at 4294967295");
    refused(pending + 8, 0U, "a pending count of 0");
    refused(pending + 8, 0x10000U, "a pending count of 65536");
    refused(pending, ~0ULL, "occurs twice");
}

}  // namespace
}  // namespace freshrank

int main() {
    using namespace freshrank;
    for (const PendingRules rules : {PendingRules{0, 0}, PendingRules{50, 0}, PendingRules{50, 7},
                                     PendingRules{3'000'000, 86'400}, PendingRules{0, 3600}}) {
        pending_counts_mirror_a_plain_map(rules);
    }
    floods_stay_within_the_budget_and_go_on_after_a_restore();
    no_row_is_evicted_where_there_is_none();
    bad_limits_of_a_snapshot_are_refused();
    std::puts("budget tests passed");
    return 0;
}
