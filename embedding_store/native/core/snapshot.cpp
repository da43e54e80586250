// Format v1 of a table, byte for byte as in FORMAT.md.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <string>
#include <type_traits>

#include "table.hpp"

namespace freshrank {

namespace {

constexpr char magic[8] = {'F', 'R', 'T', 'A', 'B', 'L', 'E', '\n'};
constexpr SipKey checksum_key{0, 0};
constexpr std::size_t checksum_bytes = 8;

// Written to disk as it lies in memory: little-endian, no padding, every field at its own offset.
struct Header {
    char magic[8];
    std::uint32_t version;
    std::uint32_t flags;
    std::uint64_t n_bytes;

    std::uint32_t dim;
    std::uint32_t first_order;
    std::uint32_t optimizer;
    std::uint32_t slot;
    double lr;
    double l2;
    double eps;
    double beta1;
    double beta2;
    double initial_accumulator;
    double init_scale;
    double probability;
    std::uint64_t seed;
    std::uint32_t min_count;
    std::uint32_t ttl_s;

    std::uint64_t table_version;
    std::uint64_t clock_s;
    std::uint64_t n_draws;
    std::uint64_t n_admitted;
    std::uint64_t n_filtered;
    std::uint64_t n_expired;
    std::uint64_t n_erased;
    std::uint32_t row_cursor;
    std::uint32_t pending_cursor;

    std::uint32_t row_high_water;
    std::uint32_t n_row_free;
    std::uint32_t pending_high_water;
    std::uint32_t n_pending_free;
    std::uint64_t n_tombstones;
};
static_assert(sizeof(Header) == 208 && std::is_trivially_copyable_v<Header> &&
                  offsetof(Header, dim) == 24 && offsetof(Header, lr) == 40 &&
                  offsetof(Header, table_version) == 120 && offsetof(Header, row_cursor) == 176 &&
                  offsetof(Header, n_tombstones) == 200,
              "the header's layout is the file format");

constexpr std::uint64_t row_metadata_bytes = 8 + 8 + 4 + 4 + 4;
constexpr std::uint64_t pending_bytes = 8 + 4 + 4;
constexpr std::uint64_t tombstone_bytes = 8 + 8;

// 128 bits are not needed: every factor is below 2^32, and max_dim keeps a row below 2^18 bytes.
std::uint64_t body_bytes(const Header& header, std::uint64_t row_floats) {
    const std::uint64_t n_rows = std::uint64_t{header.row_high_water} - header.n_row_free;
    const std::uint64_t n_pending =
        std::uint64_t{header.pending_high_water} - header.n_pending_free;
    return std::uint64_t{header.n_row_free} * 4 + n_rows * (row_metadata_bytes + row_floats * 4) +
           std::uint64_t{header.n_pending_free} * 4 + n_pending * pending_bytes +
           header.n_tombstones * tombstone_bytes;
}

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

std::vector<bool> occupied(std::uint32_t high_water, const std::vector<std::uint32_t>& free,
                           const char* what) {
    std::vector<bool> is_live(high_water, true);
    for (const std::uint32_t number : free) {
        require(number < high_water && is_live[number],
                std::string("snapshot is damaged: free ") + what + " number " +
                    std::to_string(number) + " is out of range or listed twice");
        is_live[number] = false;
    }
    return is_live;
}

}  // namespace

class SnapshotWriter {
  public:
    explicit SnapshotWriter(const Table& table) : table_(table) {}

    std::vector<std::uint8_t> write() const {
        Header header = make_header();
        const std::uint32_t row_floats = table_.config_.width() + table_.config_.n_state();
        header.n_bytes = sizeof(Header) + body_bytes(header, row_floats) + checksum_bytes;
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
    Header make_header() const {
        const TableConfig& config = table_.config_;
        const Table::Counters& counters = table_.counters_;
        Header header{};
        std::memcpy(header.magic, magic, sizeof magic);
        header.version = format_version;
        header.dim = config.dim;
        header.first_order = config.first_order;
        header.optimizer = static_cast<std::uint32_t>(config.optimizer);
        header.slot = config.slot;
        header.lr = config.lr;
        header.l2 = config.l2;
        header.eps = config.eps;
        header.beta1 = config.beta1;
        header.beta2 = config.beta2;
        header.initial_accumulator = config.initial_accumulator;
        header.init_scale = config.init_scale;
        header.probability = config.probability;
        header.seed = config.seed;
        header.min_count = config.min_count;
        header.ttl_s = config.ttl_s;
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

class SnapshotReader {
  public:
    static std::unique_ptr<Table> read(std::span<const std::uint8_t> bytes) {
        const Header header = checked_header(bytes);
        const TableConfig config = config_of(header);
        validate(config);
        const std::uint64_t row_floats = config.width() + config.n_state();
        check_counts(header, row_floats);
        auto table = std::make_unique<Table>(config, 0);
        restore_counters(header, *table);
        Source source(bytes.subspan(sizeof(Header)));
        read_rows(header, source, static_cast<std::uint32_t>(row_floats), *table);
        read_pending(header, source, *table);
        read_tombstones(header, source, *table);
        return table;
    }

  private:
    static Header checked_header(std::span<const std::uint8_t> bytes) {
        require(bytes.size() >= sizeof(Header) + checksum_bytes,
                "snapshot has " + std::to_string(bytes.size()) +
                    " bytes, less than its header: it is truncated or no snapshot");
        Header header;
        std::memcpy(&header, bytes.data(), sizeof header);
        require(std::memcmp(header.magic, magic, sizeof magic) == 0,
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

    static TableConfig config_of(const Header& header) {
        require(header.flags == 0 && header.first_order <= 1 && header.optimizer < n_optimizers,
                "snapshot is damaged: flags, first_order or optimizer hold unknown values");
        TableConfig config;
        config.dim = header.dim;
        config.first_order = header.first_order == 1;
        config.optimizer = static_cast<Optimizer>(header.optimizer);
        config.slot = header.slot;
        config.lr = header.lr;
        config.l2 = header.l2;
        config.eps = header.eps;
        config.beta1 = header.beta1;
        config.beta2 = header.beta2;
        config.initial_accumulator = header.initial_accumulator;
        config.init_scale = header.init_scale;
        config.probability = header.probability;
        config.seed = header.seed;
        config.min_count = header.min_count;
        config.ttl_s = header.ttl_s;
        return config;
    }

    static void check_counts(const Header& header, std::uint64_t row_floats) {
        const auto cursor_fits = [](std::uint32_t cursor, std::uint32_t high_water) {
            return cursor < high_water || cursor == 0;
        };
        require(
            header.n_row_free <= header.row_high_water &&
                header.n_pending_free <= header.pending_high_water &&
                header.n_tombstones <= header.n_bytes / tombstone_bytes &&
                header.n_bytes == sizeof(Header) + body_bytes(header, row_floats) + checksum_bytes,
            "snapshot is damaged: its counts do not add up to its length");
        require(header.row_high_water < no_row && header.pending_high_water < no_row &&
                    header.table_version > 0 && header.clock_s <= ~std::uint32_t{0} &&
                    cursor_fits(header.row_cursor, header.row_high_water) &&
                    cursor_fits(header.pending_cursor, header.pending_high_water),
                "snapshot is damaged: version, clock or a cursor is out of range");
    }

    static void restore_counters(const Header& header, Table& table) {
        Table::Counters& counters = table.counters_;
        counters.version = header.table_version;
        counters.clock_s = header.clock_s;
        counters.n_draws = header.n_draws;
        counters.n_admitted = header.n_admitted;
        counters.n_filtered = header.n_filtered;
        counters.n_expired = header.n_expired;
        counters.n_erased = header.n_erased;
        counters.row_cursor = header.row_cursor;
        counters.pending_cursor = header.pending_cursor;
    }

    static void read_rows(const Header& header, Source& source, std::uint32_t row_floats,
                          Table& table) {
        const std::uint64_t n_rows = header.row_high_water - header.n_row_free;
        auto free = source.take<std::uint32_t>(header.n_row_free);
        const auto is_live = occupied(header.row_high_water, free, "row");
        const auto keys = source.take<std::uint64_t>(n_rows);
        const auto versions = source.take<std::uint64_t>(n_rows);
        const auto last_seen_s = source.take<std::uint32_t>(n_rows);
        const auto born_s = source.take<std::uint32_t>(n_rows);
        const auto frequencies = source.take<std::uint32_t>(n_rows);
        table.numbers_.assign(header.row_high_water, std::move(free));
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
            std::memcpy(table.slabs_.at(row), values.data(), row_floats * sizeof(float));
            table.metadata_.key(row) = keys[i];
            table.metadata_.version(row) = versions[i];
            table.metadata_.last_seen_s(row) = last_seen_s[i];
            table.metadata_.born_s(row) = born_s[i];
            table.metadata_.frequency(row) = frequencies[i];
            ++i;
        }
    }

    static void read_pending(const Header& header, Source& source, Table& table) {
        const std::uint64_t n = header.pending_high_water - header.n_pending_free;
        auto free = source.take<std::uint32_t>(header.n_pending_free);
        const auto is_live = occupied(header.pending_high_water, free, "pending");
        const auto keys = source.take<std::uint64_t>(n);
        const auto counts = source.take<std::uint32_t>(n);
        const auto last_seen_s = source.take<std::uint32_t>(n);
        Numbers numbers;
        numbers.assign(header.pending_high_water, std::move(free));
        table.pending_.assign_numbers(std::move(numbers));
        std::size_t i = 0;
        for (std::uint32_t number = 0; number < header.pending_high_water; ++number) {
            if (!is_live[number]) {
                continue;
            }
            require(counts[i] > 0 && counts[i] < header.min_count,
                    "snapshot is damaged: a pending count is 0 or at least min_count");
            refuse_twice(
                table.index_.find(keys[i]) == no_row && table.pending_.find(keys[i]) == nullptr,
                keys[i]);
            table.pending_.put(number, {keys[i], counts[i], last_seen_s[i]});
            ++i;
        }
    }

    static void read_tombstones(const Header& header, Source& source, Table& table) {
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

    static void refuse_twice(bool is_new, std::uint64_t key) {
        require(is_new, "snapshot is damaged: key " + std::to_string(key) + " occurs twice");
    }
};

std::vector<std::uint8_t> Table::snapshot() const {
    const std::shared_lock lock(mutex_);
    return SnapshotWriter(*this).write();
}

std::unique_ptr<Table> Table::restore(std::span<const std::uint8_t> bytes) {
    return SnapshotReader::read(bytes);
}

// The checksum of a snapshot's first bytes, so that tests can forge damage it does not catch.
std::uint64_t snapshot_checksum(std::span<const std::uint8_t> covered) {
    return siphash24(covered.data(), covered.size(), checksum_key);
}

}  // namespace freshrank
