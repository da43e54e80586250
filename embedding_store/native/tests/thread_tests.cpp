// One writer, several readers, on both tables: for ThreadSanitizer to watch.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "core/serving.hpp"
#include "core/snapshot.hpp"
#include "core/table.hpp"
#include "rings.hpp"
#include "series.hpp"
#include "tests/check.hpp"

namespace freshrank {
namespace {

using testing::check;
using testing::refusal;

constexpr std::uint32_t width = 9;

std::vector<std::uint64_t> first_keys(std::uint64_t n) {
    std::vector<std::uint64_t> keys(n);
    for (std::uint64_t i = 0; i < n; ++i) {
        keys[i] = i;
    }
    return keys;
}

// Bags of two ids each.
struct Pairs {
    explicit Pairs(std::size_t n_ids) {
        for (std::size_t i = 0; i <= n_ids; i += 2) {
            offsets.push_back(static_cast<std::int64_t>(i));
        }
    }
    IdBags of(std::span<const std::uint64_t> ids) const { return {ids, offsets, Pooling::sum}; }
    std::vector<std::int64_t> offsets;
};

bool is_whole(const float* row) {
    for (std::uint32_t i = 1; i < width; ++i) {
        if (row[i] != row[0]) {
            return false;
        }
    }
    return true;
}

void no_reader_of_a_serving_table_sees_half_a_row(RowType type) {
    ServingTable table(width, 0, type);
    std::atomic<bool> is_done{false};
    const auto read = [&] {
        const auto keys = first_keys(3000);
        std::vector<float> rows(keys.size() * width);
        std::vector<std::uint8_t> found(keys.size());
        const Pairs pairs(keys.size());
        std::vector<std::uint32_t> n_found(keys.size() / 2);
        while (!is_done) {
            table.lookup(keys, rows.data(), found.data());
            for (std::size_t i = 0; i < keys.size(); ++i) {
                check(is_whole(rows.data() + i * width), "a row is whole");
            }
            table.lookup_pooled(pairs.of(keys), rows.data(), n_found.data());
            for (std::size_t i = 0; i < n_found.size(); ++i) {
                check(is_whole(rows.data() + i * width), "a bag's row is whole");
            }
            check(table.size() <= keys.size(), "no row too many");
        }
    };
    std::vector<std::thread> readers;
    readers.emplace_back(read);
    readers.emplace_back(read);
    for (int version = 1; version <= 60; ++version) {
        const auto keys = first_keys(static_cast<std::uint64_t>(version) * 50);
        const std::vector<float> rows(keys.size() * width, static_cast<float>(version));
        table.upsert(keys, rows.data());
        table.remove(std::span(keys).first(10));
    }
    is_done = true;
    for (auto& reader : readers) {
        reader.join();
    }
    check(table.size() == 2990, "all that was not removed");
}

// A whole one, then increments: together they are a table whose rows are whole.
void write_snapshots(Table& table, const std::atomic<bool>& is_done) {
    std::vector<Snapshot::Bytes> chain;
    std::optional<std::uint64_t> last;
    while (!is_done) {
        const auto snapshot = table.begin_snapshot(last);
        Snapshot::Bytes& bytes = chain.emplace_back();
        Snapshot::Bytes chunk;
        while (snapshot->next(chunk)) {
            bytes.insert(bytes.end(), chunk.begin(), chunk.end());
        }
        last = snapshot->id();
    }
    std::vector<SnapshotSource> sources;
    for (const auto& bytes : chain) {
        sources.emplace_back([left = std::span<const std::uint8_t>(bytes)]() mutable {
            return std::exchange(left, {});
        });
    }
    const auto restored = Table::restore(sources);
    const auto keys = restored->keys();
    std::vector<float> rows(keys.size() * width);
    restored->lookup(keys, rows.data());
    for (std::size_t i = 0; i < keys.size(); ++i) {
        check(is_whole(rows.data() + i * width), "a row of a snapshot is whole");
    }
}

void readers_of_a_training_table_run_beside_its_writer() {
    TableConfig config;
    config.dim = width;
    config.optimizer.kind = OptimizerKind::adam;
    config.optimizer.lr = 0.1;
    config.optimizer.eps = 1e-8;
    config.ttl_s = 5;
    Table table(config, 0);
    table.set_threads(3);
    std::atomic<bool> is_done{false};
    const auto read = [&] {
        const auto keys = first_keys(2000);
        std::vector<float> rows(keys.size() * width);
        std::vector<std::uint32_t> times(keys.size());
        const Pairs pairs(keys.size());
        while (!is_done) {
            table.lookup(keys, rows.data());
            for (std::size_t i = 0; i < keys.size(); ++i) {
                check(is_whole(rows.data() + i * width), "a row is whole");
            }
            table.last_seen_s(keys, times.data());
            table.pending(keys, times.data());
            table.statistics();
            table.delta(table.version() / 2);
            table.lookup_pooled(pairs.of(keys), rows.data());
            check(table.rows_from(100, 50).keys.size() <= 50, "no row too many");
            check(table.inspect(7).state != Inspection::State::pending, "all come at once");
        }
    };
    std::vector<std::thread> readers;
    readers.emplace_back(read);
    readers.emplace_back(read);
    readers.emplace_back([&] { write_snapshots(table, is_done); });
    for (std::uint32_t now_s = 1; now_s <= 40; ++now_s) {
        const auto keys = first_keys(now_s * 50);
        const std::vector<std::uint32_t> counts(keys.size(), 1);
        std::vector<float> rows(keys.size() * width);
        table.lookup_or_admit(keys, counts, now_s, rows.data());
        table.apply(keys, std::vector<float>(keys.size() * width, 1.0f).data());
        table.apply_pooled(Pairs(keys.size()).of(keys), rows.data());
        const Rows some = table.rows_from(0, 20);
        table.put_rows({some.keys, some.values.data(), some.versions, some.last_seen_s, some.born_s,
                        some.frequency, 0});
        table.erase(std::span(keys).first(5));
        table.expire(now_s, 100);
        table.advance();
    }
    is_done = true;
    for (auto& reader : readers) {
        reader.join();
    }
    check(table.size() == 1995, "all that was not erased");
}

void tables_of_one_budget_take_and_give_back_beside_each_other() {
    const auto budget = std::make_shared<Budget>(12'000'000);
    const auto work = [&](std::uint64_t first) {
        for (std::uint64_t round = 0; round < 3; ++round) {
            TableConfig config;
            config.dim = width;
            config.optimizer.lr = 0.1;
            std::unique_ptr<Table> made;
            while (!refusal([&] { made = std::make_unique<Table>(config, 0, budget); }).empty()) {
                std::this_thread::yield();  // the other has it all, and gives it back
            }
            Table& table = *made;
            for (std::uint32_t now_s = 1; now_s <= 20; ++now_s) {
                auto keys = first_keys(4000);
                for (auto& key : keys) {
                    key += first + now_s * 4000;
                }
                const std::vector<std::uint32_t> counts(keys.size(), 16);
                std::vector<float> rows(keys.size() * width);
                table.lookup_or_admit(keys, counts, now_s, rows.data());
                table.trim_tombstones(table.advance());
                check(table.statistics().peak_bytes <= table.statistics().budget_bytes, "in it");
                check(budget->used_bytes() <= budget->max_bytes(), "both in it");
            }
        }
    };
    std::thread other(work, 0);
    work(1ULL << 40);
    other.join();
    check(budget->used_bytes() == 0, "all given back");
}

void readers_of_feature_state_run_beside_its_writers() {
    live::SeriesOf<live::SinceFirst> series(1e9);
    live::Rings rings(3);
    const auto work = [&](std::uint64_t first_tie) {
        const auto keys = first_keys(500);
        std::vector<double> values(keys.size());
        for (std::int64_t ts = 1; ts <= 100; ++ts) {
            const std::vector<std::int64_t> times(keys.size(), ts);
            series.add(keys.data(), times.data(), keys.size());
            rings.add({{keys[static_cast<std::size_t>(ts)], ts, first_tie, 7}});
            series.read(keys.data(), times.data(), keys.size(), values.data());
            rings.read(keys.data(), times.data(), keys.size());
            check(series.entries().size() == keys.size(), "every key once");
            rings.entries();
        }
    };
    std::thread other(work, 1);
    work(2);
    other.join();
    check(series.size() == 500 && rings.entries().size() == 200, "both writers' events");
}

}  // namespace
}  // namespace freshrank

int main() {
    for (const auto type :
         {freshrank::RowType::float32, freshrank::RowType::float16, freshrank::RowType::int8}) {
        freshrank::no_reader_of_a_serving_table_sees_half_a_row(type);
    }
    freshrank::readers_of_a_training_table_run_beside_its_writer();
    freshrank::tables_of_one_budget_take_and_give_back_beside_each_other();
    freshrank::readers_of_feature_state_run_beside_its_writers();
    std::puts("thread tests passed");
    return 0;
}
