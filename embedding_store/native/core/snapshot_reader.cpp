#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "snapshot_layout.hpp"
#include "table.hpp"

namespace freshrank {

namespace {

// The sizes were checked as a whole before the first read; this checks each read all the same.
class Source {
  public:
    explicit Source(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
    template <class T>
    std::vector<T> take(std::uint64_t n) {
        expects(n <= bytes_.size() / sizeof(T), "a section ends behind the snapshot's end");
        std::vector<T> values(static_cast<std::size_t>(n));
        if (n > 0) {
            std::memcpy(values.data(), bytes_.data(), values.size() * sizeof(T));
            bytes_ = bytes_.subspan(values.size() * sizeof(T));
        }
        return values;
    }

  private:
    std::span<const std::uint8_t> bytes_;
};

std::vector<bool> occupied(std::uint32_t high_water, const std::vector<std::uint32_t>& free) {
    std::vector<bool> is_live(high_water, true);
    for (const std::uint32_t number : free) {
        require(number < high_water && is_live[number], "snapshot is damaged: free row number " +
                                                            std::to_string(number) +
                                                            " is out of range or listed twice");
        is_live[number] = false;
    }
    return is_live;
}

}  // namespace

class SnapshotReader {
  public:
    static std::unique_ptr<Table> read(std::span<const std::uint8_t> bytes,
                                       std::shared_ptr<Budget> budget) {
        const SnapshotHeader header = checked_header(bytes);
        const TableConfig config = config_of(header);
        validate(config);
        const std::uint64_t row_floats = config.width() + config.n_state();
        check_counts(header, row_floats);
        auto table = std::make_unique<Table>(config, 0, std::move(budget));
        restore_counters(header, *table);
        find_room(header, *table);
        Source source(bytes.subspan(sizeof(SnapshotHeader)));
        read_rows(header, source, static_cast<std::uint32_t>(row_floats), *table);
        read_pending(header, source, *table);
        read_tombstones(header, source, *table);
        return table;
    }

  private:
    static SnapshotHeader checked_header(std::span<const std::uint8_t> bytes) {
        require(bytes.size() >= sizeof(SnapshotHeader) + checksum_bytes,
                "snapshot has " + std::to_string(bytes.size()) +
                    " bytes, less than its header: it is truncated or no snapshot");
        SnapshotHeader header;
        std::memcpy(&header, bytes.data(), sizeof header);
        require(std::memcmp(header.magic, snapshot_magic, sizeof snapshot_magic) == 0,
                "these bytes are not a table's snapshot: they do not start with FRTABLE");
        require(header.version == format_version,
                "snapshot has format version " + std::to_string(header.version) +
                    "; this build reads version " + std::to_string(format_version));
        require(header.n_bytes == bytes.size(),
                "snapshot has " + std::to_string(bytes.size()) + " bytes, its header says " +
                    std::to_string(header.n_bytes) + ": it is truncated or damaged");
        std::uint64_t stored;
        const std::size_t n_covered = bytes.size() - checksum_bytes;
        std::memcpy(&stored, bytes.data() + n_covered, sizeof stored);
        require(stored == siphash24(bytes.data(), n_covered, checksum_key),
                "snapshot is damaged: its checksum does not match its " +
                    std::to_string(n_covered) + " bytes; take an older one");
        return header;
    }

    static bool is_known(const OptimizerConfig& optimizer) {
        return static_cast<std::uint32_t>(optimizer.kind) < n_optimizer_kinds;
    }

    static TableConfig config_of(const SnapshotHeader& header) {
        require(
            header.flags == 0 && header.limits.reserved == 0 && header.first_order <= 1 &&
                is_known(header.optimizer) && is_known(header.first_order_optimizer) &&
                (header.n_optimizers == 2 ||
                 (header.n_optimizers == 1 && header.first_order_optimizer == OptimizerConfig{})),
            "snapshot is damaged: flags, first_order or optimizers hold unknown values");
        TableConfig config;
        config.dim = header.dim;
        config.first_order = header.first_order == 1;
        config.slot = header.slot;
        config.init_scale = header.init_scale;
        config.probability = header.probability;
        config.seed = header.seed;
        config.min_count = header.min_count;
        config.limits = header.limits;
        config.ttl_s = header.ttl_s;
        config.optimizer = header.optimizer;
        if (header.n_optimizers == 2) {
            config.first_order_optimizer = header.first_order_optimizer;
        }
        return config;
    }

    static void check_counts(const SnapshotHeader& header, std::uint64_t row_floats) {
        const auto cursor_fits = [](std::uint32_t cursor, std::uint32_t high_water) {
            return cursor < high_water || cursor == 0;
        };
        require(header.n_row_free <= header.row_high_water &&
                    header.n_pending <= header.n_bytes / pending_entry_bytes &&
                    header.n_sketch_lines <= header.n_bytes / sizeof(Sketch::Line) &&
                    header.n_tombstones <= header.n_bytes / tombstone_bytes &&
                    header.n_bytes ==
                        sizeof(SnapshotHeader) + body_bytes(header, row_floats) + checksum_bytes,
                "snapshot is damaged: its counts do not add up to its length");
        require(header.row_high_water < no_row && header.table_version > 0 &&
                    header.table_version <= max_version && header.clock_s <= ~std::uint32_t{0} &&
                    cursor_fits(header.row_cursor, header.row_high_water) &&
                    cursor_fits(header.evict_cursor, header.row_high_water),
                "snapshot is damaged: version, clock or a cursor is out of range");
    }

    static void restore_counters(const SnapshotHeader& header, Table& table) {
        Table::Counters& counters = table.counters_;
        counters.version = header.table_version;
        counters.clock_s = header.clock_s;
        counters.n_draws = header.n_draws;
        counters.n_admitted = header.n_admitted;
        counters.n_filtered = header.n_filtered;
        counters.n_expired = header.n_expired;
        counters.n_erased = header.n_erased;
        counters.row_cursor = header.row_cursor;
        counters.evict_cursor = header.evict_cursor;
        counters.n_evicted = header.n_evicted;
        counters.n_sketch_admitted = header.n_sketch_admitted;
        counters.n_wanted = header.n_wanted;
        table.pending_.advance(header.clock_s);
    }

    // As much as the table had; and what it holds, if it had no budget and has one now.
    static void find_room(const SnapshotHeader& header, Table& table) {
        const auto has_room = [&] {
            return table.room_.rows() >=
                       std::max<std::uint64_t>(header.room_rows, header.row_high_water) &&
                   table.room_.tombstones() >= header.n_tombstones &&
                   table.pending_.max_size() >= header.n_pending;
        };
        while (!has_room() && table.extend_room()) {
        }
        require(header.row_high_water <= table.room_.rows() &&
                    header.n_tombstones <= table.room_.tombstones(),
                "the budget has room for " + std::to_string(table.room_.rows()) + " rows and " +
                    std::to_string(table.room_.tombstones()) + " tombstones; the snapshot has " +
                    std::to_string(header.row_high_water) + " and " +
                    std::to_string(header.n_tombstones));
    }

    static void read_rows(const SnapshotHeader& header, Source& source, std::uint32_t row_floats,
                          Table& table) {
        const std::uint64_t n_rows = header.row_high_water - header.n_row_free;
        const auto free = source.take<std::uint32_t>(header.n_row_free);
        const auto is_live = occupied(header.row_high_water, free);
        const auto keys = source.take<std::uint64_t>(n_rows);
        const auto versions = source.take<std::uint64_t>(n_rows);
        const auto last_seen_s = source.take<std::uint32_t>(n_rows);
        const auto born_s = source.take<std::uint32_t>(n_rows);
        const auto frequencies = source.take<std::uint32_t>(n_rows);
        table.numbers_.assign(header.row_high_water, free);
        table.index_.reserve(n_rows);
        std::size_t i = 0;
        for (std::uint32_t row = 0; row < header.row_high_water; ++row) {
            table.slabs_.ensure(row);
            table.metadata_.ensure(row);
            if (!is_live[row]) {
                continue;
            }
            const auto values = source.take<float>(row_floats);
            require(versions[i] > 0 && versions[i] <= header.table_version,
                    "snapshot is damaged: a row's version lies beyond the table's");
            refuse_twice(table.index_.find(keys[i]) == no_row, keys[i]);
            table.index_.insert(keys[i], row);
            check_aged(table, values.data() + table.config_.width());
            table.set_floats(row, values.data());
            table.metadata_.key(row) = keys[i];
            table.metadata_.set_version(row, versions[i]);
            table.metadata_.last_seen_s(row) = last_seen_s[i];
            table.metadata_.born_s(row) = born_s[i];
            table.metadata_.frequency(row) = frequencies[i];
            ++i;
        }
    }

    static void read_pending(const SnapshotHeader& header, Source& source, Table& table) {
        const auto keys = source.take<std::uint64_t>(header.n_pending);
        const auto counts = source.take<std::uint32_t>(header.n_pending);
        const auto seen_s = source.take<std::uint32_t>(header.n_pending);
        for (std::size_t i = 0; i < keys.size(); ++i) {
            refuse_twice(table.index_.find(keys[i]) == no_row && (i == 0 || keys[i - 1] < keys[i]),
                         keys[i]);
            require(table.pending_.restore({keys[i], counts[i], seen_s[i]}),
                    "snapshot is damaged, or the budget too small: a pending count of " +
                        std::to_string(counts[i]) + ", last seen at " + std::to_string(seen_s[i]) +
                        ", cannot be kept");
        }
        require(table.pending_.restore_sketch(source.take<Sketch::Line>(header.n_sketch_lines),
                                              header.n_sketch_counted),
                "snapshot is damaged, or the budget too small: its sketch of " +
                    std::to_string(header.n_sketch_lines) + " lines cannot be kept");
    }

    static void read_tombstones(const SnapshotHeader& header, Source& source, Table& table) {
        const auto keys = source.take<std::uint64_t>(header.n_tombstones);
        const auto versions = source.take<std::uint64_t>(header.n_tombstones);
        for (std::size_t i = 0; i < keys.size(); ++i) {
            require(versions[i] > 0 && versions[i] <= header.table_version,
                    "snapshot is damaged: a tombstone's version lies beyond the table's");
            refuse_twice(
                table.index_.find(keys[i]) == no_row && table.tombstones_.find(keys[i]) == nullptr,
                keys[i]);
            table.tombstones_.insert({keys[i], versions[i]});
        }
    }

    static void check_aged(const Table& table, const float* state) {
        for (const SliceParameters& slice : table.slices_) {
            require(slice.half_life_s == 0 ||
                        std::bit_cast<std::uint32_t>(state[slice.state + slice.n_accumulators()]) <=
                            table.counters_.clock_s,
                    "snapshot is damaged: a row's accumulators were aged after the table's clock");
        }
    }

    static void refuse_twice(bool is_new, std::uint64_t key) {
        require(is_new, "snapshot is damaged: key " + std::to_string(key) + " occurs twice");
    }
};

std::unique_ptr<Table> Table::restore(std::span<const std::uint8_t> bytes,
                                      std::shared_ptr<Budget> budget) {
    return SnapshotReader::read(bytes, std::move(budget));
}

}  // namespace freshrank
