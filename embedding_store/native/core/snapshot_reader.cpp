// Builds a table from a whole snapshot and the increments that follow it. Nothing in them is
// trusted: every number is checked, and memory follows what was read, not what was promised.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "snapshot_input.hpp"
#include "snapshot_layout.hpp"
#include "table.hpp"

namespace freshrank {

namespace {

bool is_known(const OptimizerConfig& optimizer) {
    return static_cast<std::uint32_t>(optimizer.kind) < n_optimizer_kinds;
}

TableConfig config_of(const SnapshotHeader& header) {
    require((header.flags & ~increment_flag) == 0 && header.limits.reserved == 0 &&
                header.reserved == 0 && header.first_order <= 1 && is_known(header.optimizer) &&
                is_known(header.first_order_optimizer) &&
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
    validate(config);
    return config;
}

void check_counts(const SnapshotHeader& header) {
    const auto cursor_fits = [](std::uint32_t cursor, std::uint32_t high_water) {
        return cursor < high_water || cursor == 0;
    };
    require(header.n_row_free <= header.row_high_water && header.n_free_kept <= header.n_row_free &&
                header.row_high_water < no_row && header.table_version > 0 &&
                header.table_version <= max_version && header.clock_s <= ~std::uint32_t{0} &&
                cursor_fits(header.row_cursor, header.row_high_water) &&
                cursor_fits(header.evict_cursor, header.row_high_water),
            "snapshot is damaged: counts, version, clock or a cursor is out of range");
}

SnapshotHeader read_header(SnapshotInput& input) {
    const auto header = input.take<SnapshotHeader>();
    require(std::memcmp(header.magic, snapshot_magic, sizeof snapshot_magic) == 0,
            "these bytes are not a table's snapshot: they do not start with FRTABLE");
    require(header.version == format_version,
            "snapshot has format version " + std::to_string(header.version) +
                "; this build reads version " + std::to_string(format_version));
    return header;
}

void refuse_twice(bool is_new, std::uint64_t key) {
    if (!is_new) {
        throw StoreError("snapshot is damaged: key " + std::to_string(key) + " occurs twice");
    }
}

}  // namespace

class SnapshotReader {
  public:
    static std::unique_ptr<Table> read_chain(std::span<const SnapshotSource> chain,
                                             std::shared_ptr<Budget> budget) {
        std::unique_ptr<Table> table;
        for (const SnapshotSource& source : chain) {
            SnapshotInput input(source);
            const SnapshotHeader header = read_header(input);
            try {
                const TableConfig config = config_of(header);
                check_counts(header);
                check_place(header, table.get());
                if (table == nullptr) {
                    table = std::make_unique<Table>(config, 0, budget);
                } else {
                    change(config, *table);
                }
                SnapshotReader(header, input, *table).read();
            } catch (const StoreError&) {
                require(input.is_whole(), SnapshotInput::damaged());
                throw;
            }
        }
        require(table != nullptr, "there is no snapshot to restore from");
        return table;
    }

  private:
    static constexpr std::uint64_t piece_rows = 64;  // taken at a time: they stay in the cache

    SnapshotReader(const SnapshotHeader& header, SnapshotInput& input, Table& table)
        : header_(header),
          input_(input),
          table_(table),
          row_floats_(table.config_.width() + table.config_.n_state()),
          n_known_(table.numbers_.high_water()) {}

    static void check_place(const SnapshotHeader& header, const Table* table) {
        if (header.flags != increment_flag) {
            require(table == nullptr && header.base == 0 && header.n_free_kept == 0,
                    "a whole snapshot cannot follow another: it holds everything itself");
            return;
        }
        const std::string base = std::to_string(header.base);
        require(table != nullptr, "snapshot is an increment: it must follow snapshot " + base);
        require(table->last_snapshot_ == header.base,
                "snapshot is an increment that follows snapshot " + base + ", not " +
                    std::to_string(table->last_snapshot_.value_or(0)) +
                    ": give all of a chain, in order");
        require(header.row_high_water >= table->numbers_.high_water() &&
                    header.n_free_kept <= table->numbers_.n_free(),
                "snapshot is damaged: its rows do not follow its base's");
    }

    // What may change while a table lives did; pending counts and tombstones come anew.
    static void change(const TableConfig& config, Table& table) {
        const TableConfig& own = table.config_;
        require(config.dim == own.dim && config.first_order == own.first_order &&
                    config.slot == own.slot && config.seed == own.seed &&
                    config.init_scale == own.init_scale &&
                    config.limits.max_bytes == own.limits.max_bytes &&
                    config.limits.pending_bytes == own.limits.pending_bytes,
                "snapshot is damaged: its parameters are not its base's");
        table.forget_all_but_rows();
        table.configure({.optimizer = config.optimizer,
                         .first_order_optimizer = config.first_order_optimizer,
                         .probability = config.probability,
                         .min_count = config.min_count,
                         .ttl_s = config.ttl_s,
                         .min_rows = config.limits.min_rows,
                         .count_half_life_s = config.limits.count_half_life_s});
    }

    void read() {
        restore_counters();
        find_room();
        read_free_rows();
        read_tombstones();
        read_pending();
        while (const auto n = input_.take<std::uint64_t>()) {
            read_block(n);
        }
        const std::uint64_t id = input_.finish();
        check_rows();
        check_disjoint();
        table_.last_snapshot_ = id;
        table_.has_ended_version_ = header_.table_version > 1;
    }

    void restore_counters() {
        Table::Counters& counters = table_.counters_;
        counters.version = header_.table_version;
        counters.clock_s = header_.clock_s;
        counters.n_draws = header_.n_draws;
        counters.n_admitted = header_.n_admitted;
        counters.n_filtered = header_.n_filtered;
        counters.n_expired = header_.n_expired;
        counters.n_erased = header_.n_erased;
        counters.row_cursor = header_.row_cursor;
        counters.evict_cursor = header_.evict_cursor;
        counters.n_evicted = header_.n_evicted;
        counters.n_sketch_admitted = header_.n_sketch_admitted;
        counters.n_wanted = header_.n_wanted;
        table_.pending_.advance(header_.clock_s);
    }

    // As much as the table had; and what it holds, if it had no budget and has one now.
    void find_room() {
        const auto has_room = [&] {
            return table_.room_.rows() >=
                       std::max<std::uint64_t>(header_.room_rows, header_.row_high_water) &&
                   table_.room_.tombstones() >= header_.n_tombstones &&
                   table_.pending_.max_size() >= header_.n_pending;
        };
        while (!has_room() && table_.extend_room()) {
        }
        require(header_.row_high_water <= table_.room_.rows() &&
                    header_.n_tombstones <= table_.room_.tombstones(),
                "the budget has room for " + std::to_string(table_.room_.rows()) + " rows and " +
                    std::to_string(table_.room_.tombstones()) + " tombstones; the snapshot has " +
                    std::to_string(header_.row_high_water) + " and " +
                    std::to_string(header_.n_tombstones));
    }

    // A row of the base whose number is free now has gone.
    void read_free_rows() {
        free_ = input_.take<std::uint32_t>(header_.n_row_free - header_.n_free_kept);
        for (const std::uint32_t row : free_) {
            if (row < n_known_) {
                vacate(row);
            }
        }
    }

    void vacate(std::uint32_t row) {
        if (table_.metadata_.version(row) != 0) {
            table_.index_.erase(table_.metadata_.key(row));
            table_.wipe(row);
        }
    }

    void read_tombstones() {
        for (std::uint64_t i = 0, last = 0; i < header_.n_tombstones; ++i) {
            const auto tombstone = input_.take<Table::Tombstone>();
            require(tombstone.version > 0 && tombstone.version <= header_.table_version,
                    "snapshot is damaged: a tombstone's version lies beyond the table's");
            refuse_twice(i == 0 || last < tombstone.key, tombstone.key);
            table_.tombstones_.insert(tombstone);
            last = tombstone.key;
        }
    }

    void read_pending() {
        for (std::uint64_t i = 0, last = 0; i < header_.n_pending; ++i) {
            const auto entry = input_.take<PendingCounts::Entry>();
            refuse_twice(i == 0 || last < entry.key, entry.key);
            require(table_.pending_.restore(entry),
                    "snapshot is damaged, or the budget too small: a pending count of " +
                        std::to_string(entry.count) + ", last seen at " +
                        std::to_string(entry.seen_s) + ", cannot be kept");
            last = entry.key;
        }
        require(table_.pending_.restore_sketch(input_.take<Sketch::Line>(header_.n_sketch_lines),
                                               header_.n_sketch_counted),
                "snapshot is damaged, or the budget too small: its sketch of " +
                    std::to_string(header_.n_sketch_lines) + " lines cannot be kept");
    }

    void read_block(std::uint64_t n) {
        require(n <= most_block_rows, "snapshot is damaged: a block of " + std::to_string(n) +
                                          " rows; it holds at most " +
                                          std::to_string(most_block_rows));
        for (std::uint64_t n_piece = 0; n > 0; n -= n_piece) {
            n_piece = std::min(n, piece_rows);
            make_room(n_piece);
            read_piece(n_piece);
        }
    }

    // For the keys of the next rows. Eight times as many at once: grown step by step the index
    // would move every key three times over. But never for more than eight times what has come.
    void make_room(std::uint64_t n_next) {
        const std::uint64_t n_come = n_known_ + n_rows_ + n_next;
        if (n_come > n_indexed_) {
            const std::uint64_t n_promised = header_.row_high_water - header_.n_row_free;
            n_indexed_ = std::max(n_come, std::min(n_promised, 8 * n_come));
            table_.index_.reserve(std::min(n_indexed_, n_promised));
        }
    }

    // Looks rows up when the buckets of all of them are on their way.
    void read_piece(std::uint64_t n) {
        constexpr std::size_t record_floats = sizeof(RowRecord) / sizeof(float);
        const std::size_t n_floats = record_floats + row_floats_;
        piece_.resize(n * n_floats);
        input_.take_bytes(piece_.data(), piece_.size() * sizeof(float));
        std::array<RowRecord, piece_rows> records;
        std::array<std::uint64_t, piece_rows> hashes;
        for (std::size_t i = 0; i < n; ++i) {
            std::memcpy(&records[i], piece_.data() + i * n_floats, sizeof(RowRecord));
            hashes[i] = table_.index_.hash(records[i].key);
            prefetch({&table_.index_.home_bucket(hashes[i]), sizeof(Bucket)});
        }
        for (std::size_t i = 0; i < n; ++i) {
            const RowRecord& record = records[i];
            // Every number is in use, free, or the next: memory cannot run ahead of the file.
            if (record.row < next_row_ || record.row >= header_.row_high_water ||
                record.row > n_known_ + n_rows_ + header_.n_row_free) {
                throw StoreError("snapshot is damaged: row number " + std::to_string(record.row) +
                                 " is out of range or order");
            }
            next_row_ = record.row + 1;
            ++n_rows_;
            put(record, hashes[i], piece_.data() + i * n_floats + record_floats);
        }
    }

    void put(const RowRecord& record, std::uint64_t hash, const float* values) {
        require(record.version > 0 && record.version <= header_.table_version,
                "snapshot is damaged: a row's version lies beyond the table's");
        require(aged_s(table_.slices_, values + table_.config_.width()) <= header_.clock_s,
                "snapshot is damaged: a row's accumulators were aged after the table's clock");
        require(record.last_seen_s <= header_.clock_s,
                "snapshot is damaged: a row was last seen after the table's clock");
        table_.slabs_.ensure(record.row);
        table_.metadata_.ensure(record.row);
        // Of an increment: a key that has moved here leaves its old number to another row.
        const std::uint32_t old = table_.index_.find(record.key, hash);
        if (old != record.row) {
            if (old != no_row) {
                vacate(old);
            }
            vacate(record.row);
            table_.index_.prepare_insert(hash);
            table_.index_.place(record.key, hash, record.row);
        }
        Metadata& metadata = table_.metadata_;
        table_.set_floats(record.row, values);
        metadata.key(record.row) = record.key;
        metadata.set_version(record.row, record.version);
        metadata.last_seen_s(record.row) = record.last_seen_s;
        metadata.born_s(record.row) = record.born_s;
        metadata.frequency(record.row) = record.frequency;
        metadata.clear_changed(record.row);
    }

    // Every number is either free or that of one row. (A key that came twice has lost one.)
    void check_rows() {
        table_.numbers_.assign(header_.row_high_water, header_.n_free_kept, free_);
        const Numbers& numbers = table_.numbers_;
        require(numbers.high_water() <= std::uint64_t{n_known_} + n_rows_ + free_.size(),
                "snapshot is damaged: it lacks rows");
        if (numbers.high_water() > 0) {
            table_.slabs_.ensure(numbers.high_water() - 1);
            table_.metadata_.ensure(numbers.high_water() - 1);
        }
        std::vector<bool> is_free(numbers.high_water());
        for (std::uint32_t i = 0; i < numbers.n_free(); ++i) {
            const std::uint32_t row = numbers.free_at(i);
            require(row < is_free.size() && !is_free[row], "snapshot is damaged: free row number " +
                                                               std::to_string(row) +
                                                               " is out of range or listed twice");
            is_free[row] = true;
        }
        for (std::uint32_t row = 0; row < is_free.size(); ++row) {
            if (is_free[row] != (table_.metadata_.version(row) == 0)) {
                throw StoreError("snapshot is damaged: row number " + std::to_string(row) +
                                 " is neither free nor a row, or both; a key may occur twice");
            }
        }
        table_.numbers_.mark();
    }

    void check_disjoint() const {
        const auto check = [&](std::uint64_t key) {
            refuse_twice(table_.index_.find(key) == no_row, key);
        };
        table_.pending_.each_key(check);
        for (std::uint32_t n = 0; n < table_.tombstones_.numbers().high_water(); ++n) {
            check(table_.tombstones_.at(n).key);
        }
    }

    const SnapshotHeader& header_;
    SnapshotInput& input_;
    Table& table_;
    const std::uint32_t row_floats_;
    const std::uint32_t n_known_;      // row numbers of the base
    std::vector<std::uint32_t> free_;  // behind those kept
    std::uint32_t next_row_ = 0;
    std::uint64_t n_rows_ = 0;
    std::uint64_t n_indexed_ = 0;  // keys that the index has room for, as far as is known here
    std::vector<float> piece_;
};

std::unique_ptr<Table> Table::restore(std::span<const SnapshotSource> chain,
                                      std::shared_ptr<Budget> budget) {
    return SnapshotReader::read_chain(chain, std::move(budget));
}

}  // namespace freshrank
