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
        SnapshotHeader header = make_header();
        const std::uint32_t row_floats = table_.config_.width() + table_.config_.n_state();
        header.n_bytes = sizeof(SnapshotHeader) + body_bytes(header, row_floats) + checksum_bytes;
        std::vector<std::uint8_t> bytes(header.n_bytes);
        Cursor cursor(bytes.data());
        cursor.put(header);
        write_rows(cursor, row_floats);
        write_pending(cursor);
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
        header.pending_cursor = counters.pending_cursor;
        header.row_high_water = table_.numbers_.high_water();
        header.n_row_free = static_cast<std::uint32_t>(table_.numbers_.free().size());
        header.pending_high_water = table_.pending_.numbers().high_water();
        header.n_pending_free = static_cast<std::uint32_t>(table_.pending_.numbers().free().size());
        header.n_tombstones = table_.tombstones_.size();
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
        const auto& free = table_.numbers_.free();
        const auto& metadata = table_.metadata_;
        cursor.put(free.data(), free.size());
        each_row([&](std::uint32_t row) { cursor.put(metadata.key(row)); });
        each_row([&](std::uint32_t row) { cursor.put(metadata.version(row)); });
        each_row([&](std::uint32_t row) { cursor.put(metadata.last_seen_s(row)); });
        each_row([&](std::uint32_t row) { cursor.put(metadata.born_s(row)); });
        each_row([&](std::uint32_t row) { cursor.put(metadata.frequency(row)); });
        each_row([&](std::uint32_t row) { cursor.put(table_.slabs_.at(row), row_floats); });
    }

    template <class Visit>
    void each_pending(Visit&& visit) const {
        for (std::uint32_t n = 0; n < table_.pending_.numbers().high_water(); ++n) {
            if (!table_.pending_.at(n).is_free()) {
                visit(table_.pending_.at(n));
            }
        }
    }

    void write_pending(Cursor& cursor) const {
        const auto& free = table_.pending_.numbers().free();
        cursor.put(free.data(), free.size());
        each_pending([&](const Table::Pending& waiting) { cursor.put(waiting.key); });
        each_pending([&](const Table::Pending& waiting) { cursor.put(waiting.count); });
        each_pending([&](const Table::Pending& waiting) { cursor.put(waiting.last_seen_s); });
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
