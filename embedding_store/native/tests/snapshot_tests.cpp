// Snapshots that Python cannot forge, and random operations under ASan.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "core/snapshot.hpp"
#include "core/snapshot_layout.hpp"
#include "core/table.hpp"
#include "tests/check.hpp"

namespace freshrank {

namespace {

using testing::check;
using testing::refusal;

using Bytes = Snapshot::Bytes;

// In chunks of an odd length, so that every record is cut somewhere.
std::unique_ptr<Table> restore(const std::vector<Bytes>& chain) {
    std::vector<SnapshotSource> sources;
    for (const Bytes& bytes : chain) {
        sources.emplace_back([left = std::span<const std::uint8_t>(bytes)]() mutable {
            const auto chunk = left.first(std::min<std::size_t>(left.size(), 1021));
            left = left.subspan(chunk.size());
            return chunk;
        });
    }
    return Table::restore(sources);
}

TableConfig small_config(OptimizerKind kind = OptimizerKind::adagrad) {
    TableConfig config;
    config.dim = 5;
    config.first_order = true;
    config.optimizer.kind = kind;
    config.optimizer.lr = 0.1;
    config.optimizer.eps = 1e-8;
    config.optimizer.beta = 1;
    config.optimizer.beta1 = 0.9;
    config.optimizer.beta2 = 0.999;
    config.init_scale = 0.1;
    config.min_count = 2;
    config.ttl_s = 50;
    return config;
}

// Two slots of one table in random bags, in a batch of which they are slots 0 and 2.
void read_and_learn(Table& table, std::mt19937_64& random, Ids ids, std::uint32_t now_s) {
    std::vector<std::int64_t> offsets{0};
    while (offsets.back() < static_cast<std::int64_t>(ids.size())) {
        const auto length = static_cast<std::int64_t>(random() % 3);
        offsets.push_back(std::min(offsets.back() + length, static_cast<std::int64_t>(ids.size())));
    }
    const std::size_t n = offsets.size() - 1;
    const auto is_counted = std::make_unique<bool[]>(n);
    std::vector<std::uint64_t> requests(n);
    for (std::size_t i = 0; i < n; ++i) {
        is_counted[i] = random() % 2 == 0;
        requests[i] = random() % 10;
    }
    std::vector<float> rows(n * 3 * table.config().width());
    const std::span is_counted_span(is_counted.get(), n);
    const Bags first{{ids, offsets, Pooling::mean}, is_counted_span, 0};
    const Bags second{{ids, offsets, Pooling::sqrtn}, is_counted_span, 2};
    table.read(std::array{first, second}, requests, now_s, 3, rows.data());
    check(table.learn(n, 3, rows.data()) <= ids.size(), "at most every row");
    const FirstOfBags cut({ids, offsets, Pooling::mean}, random() % 3);
    table.lookup_pooled(cut.bags(), rows.data());
    check(table.apply_pooled(cut.bags(), rows.data()) <= cut.bags().ids.size(), "of those left");
}

// Random calls, then the restored table makes the same ones: bit-equal, and clean under ASan.
void random_operations(Table& table, std::uint64_t seed, int n) {
    std::mt19937_64 random(seed);
    std::vector<std::uint64_t> ids;
    std::vector<std::uint32_t> counts;
    std::vector<float> floats;
    for (int i = 0; i < n; ++i) {
        const std::size_t length = random() % 200;
        ids.clear();
        counts.clear();
        floats.assign(length * table.config().width(), 0.5f);
        for (std::size_t k = 0; k < length; ++k) {
            ids.push_back(random() % 300 - 150);
            counts.push_back(static_cast<std::uint32_t>(random() % 3));
        }
        const auto now_s = static_cast<std::uint32_t>(random() % 30 + static_cast<unsigned>(i));
        switch (random() % 7) {
            case 0:
                table.lookup(ids, floats.data());
                break;
            case 1:
                table.lookup_or_admit(ids, counts, now_s, floats.data());
                break;
            case 2:
                table.apply(ids, floats.data());
                break;
            case 3:
                table.expire(now_s, random() % 100);
                break;
            case 4:
                table.erase(Ids(ids).first(length / 20));
                break;
            case 5:
                read_and_learn(table, random, ids, now_s);
                break;
            default:
                table.trim_tombstones(table.advance() / 2);
        }
    }
}

// Every optimizer over the whole row, then each with another for the first-order column, limits on.
std::vector<TableConfig> configs_of_every_kind() {
    std::vector<TableConfig> configs;
    for (std::uint32_t kind = 0; kind < n_optimizer_kinds; ++kind) {
        configs.push_back(small_config(static_cast<OptimizerKind>(kind)));
        const auto next = static_cast<OptimizerKind>((kind + 1) % n_optimizer_kinds);
        TableConfig& config = configs.emplace_back(configs.back());
        config.first_order_optimizer = small_config(next).optimizer;
        for (OptimizerConfig* slice : {&config.optimizer, &*config.first_order_optimizer}) {
            slice->clip_norm = 1;
            slice->clip_value = 0.5;
            slice->accumulator_half_life_s = slice->is_adagrad() ? 20 : 0;
        }
    }
    configs.emplace_back(small_config()).limits = {.max_bytes = 5'000'000,
                                                   .pending_bytes = min_pending_bytes,
                                                   .min_rows = 5,
                                                   .count_half_life_s = 30};
    return configs;
}

void restored_table_repeats_the_original() {
    for (const TableConfig& config : configs_of_every_kind()) {
        Table table(config, 10);
        random_operations(table, 1, 400);
        const auto restored = restore({table.snapshot()});
        random_operations(table, 2, 400);
        random_operations(*restored, 2, 400);
        check(table.size() > 0 && table.snapshot() == restored->snapshot(), "bit-equal");
    }
}

Bytes rest_of(Snapshot& snapshot) {
    Bytes bytes, chunk;
    while (snapshot.next(chunk)) {
        bytes.insert(bytes.end(), chunk.begin(), chunk.end());
    }
    return bytes;
}

// Twins do the same; one is written at once, the other piece by piece while it goes on: the whole
// and every increment are of their instant.
void snapshots_are_of_the_instant_at_which_they_began() {
    const auto configs = configs_of_every_kind();
    for (std::size_t n = 0; n < configs.size(); n += 2) {
        TableConfig config = configs[n];
        // Wide rows: a block is a few of them, so that a hundred are many blocks.
        config.dim = 1700;
        Table table(config, 0);
        Table twin(config, 0);
        std::mt19937_64 random(11);
        std::vector<Bytes> chain;
        std::optional<std::uint64_t> last;
        for (std::uint64_t round = 0; round < 5; ++round) {
            random_operations(table, round, 40);
            random_operations(twin, round, 40);
            const Bytes expected = twin.snapshot();
            const auto snapshot = table.begin_snapshot(last);
            check(!refusal([&] { table.begin_snapshot(); }).empty(), "one at a time");
            Bytes bytes, chunk;
            for (std::uint64_t step = 0; snapshot->next(chunk); ++step) {
                bytes.insert(bytes.end(), chunk.begin(), chunk.end());
                const std::uint64_t seed = 1000 * round + step;
                random_operations(table, seed, step < 60 ? 1 : 0);
                random_operations(twin, seed, step < 60 ? 1 : 0);
            }
            check(round > 0 || bytes == expected, "the whole is of its instant");
            chain.push_back(bytes);
            check(restore(chain)->snapshot() == expected, "the chain ends at its instant");
            last = snapshot->id();
        }
        check(table.snapshot() == twin.snapshot(), "snapshots change nothing");
        check(chain.back().size() < chain.front().size() * 2, "an increment is no larger");
        std::swap(chain[1], chain[2]);
        check(refusal([&] { restore(chain); }).find("give all of a chain, in order") !=
                  std::string::npos,
              "a chain has an order");
    }
}

// The map of pending counts grows several times between two pieces.
void pending_counts_that_grow_meanwhile_are_those_of_the_instant() {
    TableConfig config = small_config();
    config.ttl_s = 1000;
    config.min_count = 3;
    Table table(config, 0);
    Table twin(config, 0);
    const auto count = [](Table& own, std::uint64_t first, std::uint64_t end, std::uint32_t now_s) {
        std::vector<std::uint64_t> ids(end - first);
        std::iota(ids.begin(), ids.end(), first);
        std::vector<float> rows(ids.size() * own.config().width());
        own.lookup_or_admit(ids, std::vector<std::uint32_t>(ids.size(), 1), now_s, rows.data());
    };
    count(table, 0, 30'000, 1);
    count(twin, 0, 30'000, 1);
    const Bytes expected = twin.snapshot();
    const auto snapshot = table.begin_snapshot();
    count(table, 20'000, 25'000, 500);  // counted again,
    count(table, 30'000, 200'000, 1);   // beside many that were not there,
    table.erase(std::array<std::uint64_t, 3>{5, 6, 29'999});
    table.expire(1100, 1'000'000);  // and most of them out of time
    check(rest_of(*snapshot) == expected, "of the instant");
}

void a_snapshot_that_was_given_up_leaves_nothing() {
    Table table(small_config(), 0);
    random_operations(table, 5, 100);
    const std::uint64_t whole = [&] {
        const auto snapshot = table.begin_snapshot();
        rest_of(*snapshot);
        return snapshot->id();
    }();
    auto snapshot = table.begin_snapshot(whole);
    Bytes chunk;
    snapshot->next(chunk);
    random_operations(table, 6, 20);
    check(table.statistics().snapshot_bytes > 0, "memory is counted");
    snapshot.reset();
    check(table.statistics().snapshot_bytes == 0, "and freed");
    check(
        refusal([&] { table.begin_snapshot(whole); }).find("write a full one") != std::string::npos,
        "what it took may be lost");
    const Bytes bytes = table.snapshot();
    check(restore({bytes})->snapshot() == bytes, "a whole one holds everything");
}

void sign(std::vector<std::uint8_t>& snapshot) {
    const std::size_t n_covered = snapshot.size() - checksum_bytes;
    const std::uint64_t checksum = siphash24(snapshot.data(), n_covered, checksum_key);
    std::memcpy(snapshot.data() + n_covered, &checksum, sizeof checksum);
}

// Damage with a matching checksum, as no accident makes it: refused, or a table that works.
void forged_snapshots_never_crash() {
    TableConfig config = small_config();
    config.optimizer.accumulator_half_life_s = 20;
    config.first_order_optimizer = small_config(OptimizerKind::ftrl).optimizer;
    Table table(config, 0);
    random_operations(table, 3, 300);
    const auto whole = table.snapshot();
    std::mt19937_64 random(7);
    const std::uint64_t odd_values[] = {0, 1, 0xff, 0x7fffffff, 0xffffffff, ~0ULL, 1ULL << 63};
    int n_refused = 0;
    int n_opened = 0;
    for (int i = 0; i < 1500; ++i) {
        auto forged = whole;
        const std::size_t n_covered = forged.size() - 8;
        // The header mostly: its counts and lengths are what must not be trusted.
        const std::size_t end = i % 4 == 0 ? n_covered - 8 : sizeof(SnapshotHeader);
        const std::size_t at = 8 + random() % (end - 8);
        const std::uint64_t value = i % 3 == 0 ? random() : odd_values[random() % 7];
        std::memcpy(forged.data() + at, &value, 1 + random() % 8);
        sign(forged);
        std::unique_ptr<Table> opened;
        if (!refusal([&] { opened = restore({forged}); }).empty()) {
            ++n_refused;
            continue;
        }
        ++n_opened;
        random_operations(*opened, 4, 5);
        check(restore({opened->snapshot()})->size() == opened->size(), "opens again");
    }
    check(n_refused > 300 && n_opened > 30, "both outcomes were seen");
}

// A bad value in each field of either optimizer, under a checksum that matches.
void bad_optimizers_of_a_snapshot_are_refused_by_name() {
    TableConfig config = small_config();
    config.min_count = 1;  // no pending counts, whose times are checked too
    config.optimizer.accumulator_half_life_s = 20;
    config.first_order_optimizer = small_config(OptimizerKind::adam).optimizer;
    Table table(config, 0);
    random_operations(table, 9, 100);
    const auto whole = table.snapshot();
    const auto refused = [&](std::size_t at, auto value, const std::string& said) {
        auto forged = whole;
        std::memcpy(forged.data() + at, &value, sizeof value);
        sign(forged);
        const std::string message = refusal([&] { restore({forged}); });
        check(message.find(said) != std::string::npos, said.c_str());
    };
    const char* fields[] = {"lr",        "l1",    "l2",    "weight_decay",        "eps",
                            "beta",      "beta1", "beta2", "initial_accumulator", "clip_norm",
                            "clip_value"};
    const std::size_t optimizers[] = {offsetof(SnapshotHeader, optimizer),
                                      offsetof(SnapshotHeader, first_order_optimizer)};
    for (const std::size_t optimizer : optimizers) {
        const std::string of = optimizer == optimizers[0] ? "" : first_order_prefix;
        std::size_t at = optimizer + offsetof(OptimizerConfig, lr);
        for (const char* field : fields) {
            refused(at, -1.0, of + field + " is -1");
            refused(at, std::numeric_limits<double>::quiet_NaN(), of + field + " is nan");
            at += sizeof(double);
        }
        refused(optimizer, n_optimizer_kinds, "optimizers hold unknown values");
        refused(optimizer + 4, optimizer == optimizers[0] ? 0U : 20U,
                optimizer == optimizers[0] ? "snapshot is" : "accumulator_half_life_s is");
    }
    for (const std::uint32_t n : {0U, 1U, 3U}) {
        refused(offsetof(SnapshotHeader, n_optimizers), n, "optimizers hold unknown values");
    }
    refused(offsetof(SnapshotHeader, clock_s), std::uint64_t{1}, "aged after the table's clock");
}

}  // namespace
}  // namespace freshrank

int main() {
    using namespace freshrank;
    restored_table_repeats_the_original();
    snapshots_are_of_the_instant_at_which_they_began();
    pending_counts_that_grow_meanwhile_are_those_of_the_instant();
    a_snapshot_that_was_given_up_leaves_nothing();
    forged_snapshots_never_crash();
    bad_optimizers_of_a_snapshot_are_refused_by_name();
    std::puts("snapshot tests passed");
    return 0;
}
