#include "snapshot.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <shared_mutex>
#include <tuple>
#include <utility>

#include "pipeline.hpp"
#include "table.hpp"

namespace freshrank {

namespace {

constexpr std::uint32_t piece_records = 1U << 14;  // of sections other than rows: 64 KiB to 1 MiB

// Memory of 2 MiB for rows that change meanwhile. A batch of 8,192 rows of dim 16 takes up to two
// at first, half of one later; who begins is waited for, who reads on is not.
constexpr std::size_t slabs_at_begin = 4;
constexpr std::size_t slabs_ahead = 16;

template <class T>
void append(Snapshot::Bytes& bytes, const T* values, std::size_t n) {
    const auto* from = reinterpret_cast<const std::uint8_t*>(values);
    bytes.insert(bytes.end(), from, from + n * sizeof(T));
}

SnapshotHeader header_of(const TableConfig& config) {
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
    header.limits = config.limits;
    return header;
}

}  // namespace

struct Snapshot::State {
    State(Table& table, const SnapshotHeader& header, Preimages&& of_rows)
        : row_floats(floats_of(table.config_)),
          row_bytes(bytes_of(row_floats)),
          rows(std::move(of_rows)),
          tombstones(table.tombstones_.numbers().high_water(), sizeof(Table::Tombstone),
                     piece_records),
          sketch(static_cast<std::uint32_t>(header.n_sketch_lines), sizeof(Sketch::Line),
                 piece_records / 16),
          n_sketch_halvings(table.pending_.sketch().n_halvings()),
          pending(table.pending_) {
        rows.cover(header.row_high_water);
        sorted_tombstones.reserve(header.n_tombstones);
    }

    static std::uint32_t floats_of(const TableConfig& config) {
        return config.width() + config.n_state();
    }
    static std::uint32_t bytes_of(std::uint32_t row_floats) {
        return static_cast<std::uint32_t>(sizeof(RowRecord) + row_floats * sizeof(float));
    }

    std::uint32_t row_floats;
    std::uint32_t row_bytes;
    Preimages rows;
    Preimages tombstones;
    Preimages sketch;
    std::uint32_t n_sketch_halvings;
    PendingView pending;
    std::vector<Table::Tombstone> sorted_tombstones;
};

// Before the table's lock is taken: the system's pages take their time.
Preimages Snapshot::row_preimages(Table& table) {
    std::uint32_t n_rows = 0;
    std::uint32_t row_floats = 0;
    {
        const std::shared_lock lock(table.mutex_);
        n_rows = table.numbers_.high_water();
        row_floats = State::floats_of(table.config_);
    }
    Preimages rows(n_rows, State::bytes_of(row_floats), block_rows(row_floats));
    while (rows.lacks(slabs_at_begin)) {
        rows.add(rows.new_slab());
    }
    return rows;
}

Snapshot::Snapshot(Table& table, std::optional<std::uint64_t> since, Preimages&& rows)
    : table_(&table), header_(header_of(table.config_)) {
    const Table::Counters& counters = table.counters_;
    header_.flags = since ? increment_flag : 0;
    header_.base = since.value_or(0);
    header_.table_version = counters.version;
    header_.clock_s = counters.clock_s;
    header_.n_draws = counters.n_draws;
    header_.n_admitted = counters.n_admitted;
    header_.n_filtered = counters.n_filtered;
    header_.n_expired = counters.n_expired;
    header_.n_erased = counters.n_erased;
    header_.row_cursor = counters.row_cursor;
    header_.evict_cursor = counters.evict_cursor;
    header_.row_high_water = table.numbers_.high_water();
    header_.n_row_free = table.numbers_.n_free();
    header_.n_pending = table.pending_.size();
    header_.n_tombstones = table.tombstones_.size();
    header_.room_rows = table.room_.is_limited() ? table.room_.rows() : 0;
    header_.n_evicted = counters.n_evicted;
    header_.n_sketch_admitted = counters.n_sketch_admitted;
    header_.n_wanted = counters.n_wanted;
    header_.n_sketch_counted = table.pending_.sketch().n_counted();
    header_.n_sketch_lines = table.pending_.sketch().n_lines();
    header_.n_free_kept = since ? table.numbers_.n_same() : 0;
    state_ = std::make_unique<State>(table, header_, std::move(rows));
    // From here on nothing fails.
    table.numbers_.mark();
    table.numbers_.watch();
    table.tombstones_.watch(&state_->tombstones);
    table.pending_.sketch().watch(&state_->sketch);
    table.pending_.watch(&state_->pending);
    table.snapshot_ = this;
    table.last_snapshot_.reset();
}

Snapshot::~Snapshot() {
    close();
}

bool Snapshot::next(Bytes& chunk) {
    static constexpr std::array sections{
        &Snapshot::put_header,   &Snapshot::put_free_rows, &Snapshot::put_tombstones,
        &Snapshot::put_pending,  &Snapshot::put_sketch,    &Snapshot::put_rows,
        &Snapshot::put_checksum,
    };
    process_.check();
    {
        const std::lock_guard lock(mutex_);
        chunk.clear();
        if (id_) {
            return false;
        }
        require(table_ != nullptr, "the snapshot was closed before its end; begin another");
        provide();
        while (chunk.empty()) {
            if (!(this->*sections[section_])(chunk)) {
                ++section_;
                n_put_ = 0;
            }
        }
        checksum_.add(chunk.data(), chunk.size());
        if (!id_) {
            return true;
        }
    }
    close();
    return true;
}

void Snapshot::close() {
    if (!process_.is_this()) {
        return;  // a fork holds a copy of everything, and nobody waits for it
    }
    const std::lock_guard lock(mutex_);
    if (table_ == nullptr) {
        return;
    }
    {
        const std::lock_guard table_lock(table_->mutex_);
        table_->numbers_.unwatch();
        table_->tombstones_.watch(nullptr);
        table_->pending_.sketch().watch(nullptr);
        table_->pending_.watch(nullptr);
        table_->snapshot_ = nullptr;
        table_->last_snapshot_ = id_;
    }
    table_ = nullptr;
    state_.reset();
}

std::uint64_t Snapshot::id() const {
    process_.check();
    const std::lock_guard lock(mutex_);
    require(id_.has_value(), "a snapshot has its id when it was read to its end");
    return *id_;
}

std::uint64_t Snapshot::n_bytes() const {
    return state_->rows.n_bytes() + state_->tombstones.n_bytes() + state_->sketch.n_bytes() +
           state_->pending.n_bytes() + table_->numbers_.watched_bytes() +
           state_->sorted_tombstones.capacity() * sizeof(Table::Tombstone);
}

// Memory for rows that change while this reader waits for nobody.
void Snapshot::provide() {
    Preimages& rows = state_->rows;
    for (bool is_short = true; is_short;) {
        {
            const std::shared_lock lock(table_->mutex_);
            is_short = rows.lacks(slabs_ahead);
        }
        if (is_short) {
            Preimages::Slab slab = rows.new_slab();
            const std::lock_guard lock(table_->mutex_);
            rows.add(std::move(slab));
        }
    }
}

void Snapshot::keep(std::span<const std::uint64_t> ids) {
    std::vector<std::uint32_t> rows(ids.size());
    for_each_row(table_->index_, ids, fetch_nothing,
                 [&](std::size_t i, std::uint32_t row) { rows[i] = row; });
    keep_rows(rows);
}

void Snapshot::keep_rows(std::span<const std::uint32_t> rows) {
    constexpr std::size_t ahead = 16;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        if (i + ahead < rows.size() && state_->rows.is_wanted(rows[i + ahead])) {
            prefetch(table_->slabs_.lines(rows[i + ahead], state_->row_floats));
            prefetch({&table_->metadata_.record(rows[i + ahead]), 1});
            prefetch({&table_->metadata_.key(rows[i + ahead]), 1});
            prefetch({&table_->metadata_.born_s(rows[i + ahead]), 1});
        }
        keep_row(rows[i]);
    }
}

// What a row holds; of a number that is free, that it is.
void Snapshot::write_row(std::uint32_t row, std::uint8_t* to) const {
    const Metadata& metadata = table_->metadata_;
    const RowRecord record{.row = row,
                           .last_seen_s = metadata.last_seen_s(row),
                           .born_s = metadata.born_s(row),
                           .frequency = metadata.frequency(row),
                           .key = metadata.key(row),
                           .version = metadata.record(row).version_word};
    std::memcpy(to, &record, sizeof record);
    if (record.version != 0) {
        table_->get_floats(row, reinterpret_cast<float*>(to + sizeof record));
    }
}

void Snapshot::keep_row(std::uint32_t row) {
    if (std::uint8_t* image = state_->rows.place_for(row)) {
        write_row(row, image);
    }
}

bool Snapshot::put_header(Bytes& chunk) {
    if (n_put_++ > 0) {
        return false;
    }
    append(chunk, &header_, 1);
    return true;
}

bool Snapshot::put_free_rows(Bytes& chunk) {
    const std::size_t first = header_.n_free_kept + n_put_;
    const std::size_t n = std::min<std::size_t>(piece_records, header_.n_row_free - first);
    std::vector<std::uint32_t> numbers(n);
    {
        const std::shared_lock lock(table_->mutex_);
        for (std::size_t i = 0; i < n; ++i) {
            numbers[i] = table_->numbers_.watched_at(static_cast<std::uint32_t>(first + i),
                                                     header_.n_row_free);
        }
    }
    append(chunk, numbers.data(), n);
    n_put_ += n;
    return n > 0;
}

// The next of all records of a section, which are freed behind the last.
template <class T>
bool Snapshot::put_piece(Bytes& chunk, std::vector<T>& records) {
    const std::size_t n = std::min<std::size_t>(piece_records, records.size() - n_put_);
    append(chunk, records.data() + n_put_, n);
    n_put_ += n;
    if (n == 0) {
        std::vector<T> freed;  // once the lock is gone
        const std::lock_guard lock(table_->mutex_);
        records.swap(freed);
    }
    return n > 0;
}

// Their numbers mean nothing, so they are written by key: equal tables give equal bytes.
bool Snapshot::put_tombstones(Bytes& chunk) {
    auto& sorted = state_->sorted_tombstones;
    if (n_put_ == 0) {
        while (!state_->tombstones.is_done()) {
            const std::lock_guard lock(table_->mutex_);
            state_->tombstones.take([&](std::uint32_t n, const std::uint8_t* image) {
                Table::Tombstone tombstone = table_->tombstones_.at(n);
                if (image != nullptr) {
                    std::memcpy(&tombstone, image, sizeof tombstone);
                }
                if (!tombstone.is_free()) {
                    sorted.push_back(tombstone);
                }
            });
        }
        expects(sorted.size() == header_.n_tombstones, "a snapshot lost tombstones");
        std::ranges::sort(sorted, {}, &Table::Tombstone::key);
    }
    return put_piece(chunk, sorted);
}

bool Snapshot::put_pending(Bytes& chunk) {
    auto& entries = state_->pending.entries();
    if (n_put_ == 0) {
        for (bool is_more = true; is_more;) {
            const std::lock_guard lock(table_->mutex_);
            is_more = state_->pending.gather();
        }
        expects(entries.size() == header_.n_pending, "a snapshot lost pending counts");
        std::ranges::sort(entries, {}, &PendingCounts::Entry::key);
    }
    return put_piece(chunk, entries);
}

bool Snapshot::put_sketch(Bytes& chunk) {
    if (state_->sketch.is_done()) {
        return false;
    }
    const std::lock_guard lock(table_->mutex_);
    state_->sketch.take([&](std::uint32_t n, const std::uint8_t* image) {
        Sketch::Line line = table_->pending_.sketch().line(n);
        if (image != nullptr) {
            std::memcpy(&line, image, sizeof line);
        }
        line = Sketch::settled(line, state_->n_sketch_halvings);
        append(chunk, &line, 1);
    });
    return true;
}

// A block of rows behind their number; the number 0 ends them.
bool Snapshot::put_rows(Bytes& chunk) {
    const bool is_over = state_->rows.is_done();
    std::uint64_t n = 0;
    if (!is_over) {
        const std::size_t n_most = state_->rows.end() - state_->rows.first();
        chunk.resize(sizeof n + n_most * state_->row_bytes);
        std::uint8_t* begin = chunk.data() + sizeof n;
        n = static_cast<std::size_t>(put_block(begin) - begin) / state_->row_bytes;
        if (n == 0) {
            chunk.clear();
            return true;
        }
    }
    chunk.resize(sizeof n + n * state_->row_bytes);
    std::memcpy(chunk.data(), &n, sizeof n);
    return !is_over;
}

// Writes the next block's rows; they count as unchanged from the snapshot's instant on. Returns
// where they end.
std::uint8_t* Snapshot::put_block(std::uint8_t* to) {
    const bool is_whole = (header_.flags & increment_flag) == 0;
    const std::lock_guard lock(table_->mutex_);
    Metadata& metadata = table_->metadata_;
    state_->rows.take([&](std::uint32_t row, const std::uint8_t* image) {
        if (image != nullptr) {
            std::memcpy(to, image, state_->row_bytes);
        } else if (is_whole || metadata.is_changed(row)) {
            write_row(row, to);
            metadata.clear_changed(row);
        } else {
            return;
        }
        RowRecord record;
        std::memcpy(&record, to, sizeof record);
        const bool is_changed = (record.version & changed_bit) != 0;
        record.version &= max_version;
        std::memcpy(to, &record, sizeof record);
        if (record.version != 0 && (is_whole || is_changed)) {
            to += state_->row_bytes;
        }
    });
    return to;
}

bool Snapshot::put_checksum(Bytes& chunk) {
    id_ = checksum_.value();
    append(chunk, &*id_, 1);
    return true;
}

// For an increment, which brings them anew.
void Table::forget_all_but_rows() {
    tombstones_ = RecordMap<Tombstone>(random_secret(), &tally_);
    pending_ = empty_pending();
    fit_to_room();
}

// Before rows change.
void Table::keep(Ids ids) {
    if (snapshot_ != nullptr) {
        snapshot_->keep(ids);
    }
}

void Table::keep_rows(std::span<const std::uint32_t> rows) {
    if (snapshot_ != nullptr) {
        snapshot_->keep_rows(rows);
    }
}

std::unique_ptr<Snapshot> Table::begin_snapshot(std::optional<std::uint64_t> since) {
    Preimages rows = Snapshot::row_preimages(*this);
    const std::lock_guard lock(mutex_);
    require(snapshot_ == nullptr,
            "a snapshot of this table is being taken: read it to its end or close it first");
    require(!since || since == last_snapshot_,
            "no increment can follow snapshot " + std::to_string(since.value_or(0)) + ": " +
                (last_snapshot_ ? "the last of this table was " + std::to_string(*last_snapshot_)
                                : "none of this table, or the last was not read to its end") +
                "; write a full one");
    return std::unique_ptr<Snapshot>(new Snapshot(*this, since, std::move(rows)));
}

std::vector<std::uint8_t> Table::snapshot() {
    const auto snapshot = begin_snapshot();
    std::vector<std::uint8_t> bytes, chunk;
    while (snapshot->next(chunk)) {
        bytes.insert(bytes.end(), chunk.begin(), chunk.end());
    }
    return bytes;
}

}  // namespace freshrank
