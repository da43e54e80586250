// Snapshots that Python cannot forge, and random operations under ASan.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/snapshot_layout.hpp"
#include "core/table.hpp"
#include "tests/check.hpp"

namespace freshrank {

namespace {

using testing::check;
using testing::refusal;

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
        const auto restored = Table::restore(table.snapshot());
        random_operations(table, 2, 400);
        random_operations(*restored, 2, 400);
        check(table.size() > 0 && table.snapshot() == restored->snapshot(), "bit-equal");
    }
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
        if (!refusal([&] { opened = Table::restore(forged); }).empty()) {
            ++n_refused;
            continue;
        }
        ++n_opened;
        random_operations(*opened, 4, 5);
        check(Table::restore(opened->snapshot())->size() == opened->size(), "opens again");
    }
    check(n_refused > 300 && n_opened > 30, "both outcomes were seen");
}

// A bad value in each field of either optimizer, under a checksum that matches.
void bad_optimizers_of_a_snapshot_are_refused_by_name() {
    TableConfig config = small_config();
    config.optimizer.accumulator_half_life_s = 20;
    config.first_order_optimizer = small_config(OptimizerKind::adam).optimizer;
    Table table(config, 0);
    random_operations(table, 9, 100);
    const auto whole = table.snapshot();
    const auto refused = [&](std::size_t at, auto value, const std::string& said) {
        auto forged = whole;
        std::memcpy(forged.data() + at, &value, sizeof value);
        sign(forged);
        const std::string message = refusal([&] { Table::restore(forged); });
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
                optimizer == optimizers[0] ? "add up to its length" : "accumulator_half_life_s is");
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
    forged_snapshots_never_crash();
    bad_optimizers_of_a_snapshot_are_refused_by_name();
    std::puts("snapshot tests passed");
    return 0;
}
