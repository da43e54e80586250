#include <algorithm>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "snapshot_layout.hpp"
#include "table.hpp"

namespace freshrank {

namespace {

class Cursor {
  public:
    explicit Cursor(std::uint8_t* at) : at_(at) {}
    template <class T>
    void put(const T* values, std::size_t n) {
        if (n > 0) {
            std::memcpy(at_, values, n * sizeof(T));
            at_ += n * sizeof(T);
        }
    }
    template <class T>
    void put(const T& value) {
        put(&value, 1);
    }

  private:
    std::uint8_t* at_;
};

}  // namespace

class SnapshotWriter {
  public:
    explicit SnapshotWriter(const Table& table) : table_(table) {}

    std::vector<std::uint8_t> write() const {
        const auto waiting = table_.pending_.entries();
        SnapshotHeader header = make_header();
        header.n_pending = waiting.size();
        const std::uint32_t row_floats = table_.config_.width() + table_.config_.n_state();
        header.n_bytes = sizeof(SnapshotHeader) + body_bytes(header, row_floats) + checksum_bytes;
        std::vector<std::uint8_t> bytes(header.n_bytes);
        Cursor cursor(bytes.data());
        cursor.put(header);
        write_rows(cursor, row_floats);
        write_pending(cursor, waiting);
        write_tombstones(cursor);
        cursor.put(siphash24(bytes.data(), bytes.size() - checksum_bytes, checksum_key));
        return bytes;
    }

  private:
    SnapshotHeader make_header() const {
        const TableConfig& config = table_.config_;
        const Table::Counters& counters = table_.counters_;
        SnapshotHeader header{};
        std::memcpy(header.magic, snapshot_magic, sizeof snapshot_magic);
        header.version = format_version;
        header.dim = config.dim;
        header.first_order = config.first_order;
        header.n_optimizers = config.first_order_optimizer ? 2 : 1;
        header.slot = config.slot;
        header.init_scale = config.init_scale;
        header.probability = config.probability;
        header.seed = config.seed;
        header.min_count = config.min_count;
        header.ttl_s = config.ttl_s;
        header.optimizer = config.optimizer;
        header.first_order_optimizer = config.first_order_optimizer.value_or(OptimizerConfig{});
        header.table_version = counters.version;
        header.clock_s = counters.clock_s;
        header.n_draws = counters.n_draws;
        header.n_admitted = counters.n_admitted;
        header.n_filtered = counters.n_filtered;
        header.n_expired = counters.n_expired;
        header.n_erased = counters.n_erased;
        header.row_cursor = counters.row_cursor;
        header.evict_cursor = counters.evict_cursor;
        header.row_high_water = table_.numbers_.high_water();
        header.n_row_free = table_.numbers_.n_free();
        header.n_tombstones = table_.tombstones_.size();
        header.limits = config.limits;
        header.room_rows = table_.room_.is_limited() ? table_.room_.rows() : 0;
        header.n_evicted = counters.n_evicted;
        header.n_sketch_admitted = counters.n_sketch_admitted;
        header.n_wanted = counters.n_wanted;
        header.n_sketch_counted = table_.pending_.sketch().n_counted();
        header.n_sketch_lines = table_.pending_.sketch().n_lines();
        return header;
    }

    template <class Visit>
    void each_row(Visit&& visit) const {
        for (std::uint32_t row = 0; row < table_.numbers_.high_water(); ++row) {
            if (table_.metadata_.version(row) != 0) {
                visit(row);
            }
        }
    }

    void write_rows(Cursor& cursor, std::uint32_t row_floats) const {
        const auto& metadata = table_.metadata_;
        for (std::uint32_t i = 0; i < table_.numbers_.n_free(); ++i) {
            cursor.put(table_.numbers_.free_at(i));
        }
        each_row([&](std::uint32_t row) { cursor.put(metadata.key(row)); });
        each_row([&](std::uint32_t row) { cursor.put(std::uint64_t{metadata.version(row)}); });
        each_row([&](std::uint32_t row) { cursor.put(metadata.last_seen_s(row)); });
        each_row([&](std::uint32_t row) { cursor.put(metadata.born_s(row)); });
        each_row([&](std::uint32_t row) { cursor.put(metadata.frequency(row)); });
        std::vector<float> floats(row_floats);
        each_row([&](std::uint32_t row) {
            table_.get_floats(row, floats.data());
            cursor.put(floats.data(), floats.size());
        });
    }

    void write_pending(Cursor& cursor, const std::vector<PendingCounts::Entry>& waiting) const {
        for (const auto& entry : waiting) {
            cursor.put(entry.key);
        }
        for (const auto& entry : waiting) {
            cursor.put(entry.count);
        }
        for (const auto& entry : waiting) {
            cursor.put(entry.seen_s);
        }
        cursor.put(table_.pending_.sketch().lines(), table_.pending_.sketch().n_lines());
    }

    // Their numbers mean nothing, so they are written by key: equal tables give equal bytes.
    void write_tombstones(Cursor& cursor) const {
        std::vector<std::pair<std::uint64_t, std::uint64_t>> sorted;
        for (std::uint32_t n = 0; n < table_.tombstones_.numbers().high_water(); ++n) {
            const Table::Tombstone& tombstone = table_.tombstones_.at(n);
            if (!tombstone.is_free()) {
                sorted.emplace_back(tombstone.key, tombstone.version);
            }
        }
        std::sort(sorted.begin(), sorted.end());
        for (const auto& entry : sorted) {
            cursor.put(entry.first);
        }
        for (const auto& entry : sorted) {
            cursor.put(entry.second);
        }
    }

    const Table& table_;
};

std::vector<std::uint8_t> Table::snapshot() const {
    const std::shared_lock lock(mutex_);
    return SnapshotWriter(*this).write();
}

}  // namespace freshrank
