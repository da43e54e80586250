// A table as it is at one instant, written piece by piece while the table goes on.
//
// Nothing is copied when it begins: what changes a record first keeps what it held, unless the
// snapshot has come by. So it holds its table's lock for one block at a time, and memory for what
// changes meanwhile and for pending counts and tombstones, which are written in order of keys.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "hash.hpp"
#include "lock.hpp"
#include "pending_view.hpp"
#include "preimages.hpp"
#include "snapshot_layout.hpp"

namespace freshrank {

class Table;

class Snapshot {
  public:
    using Bytes = std::vector<std::uint8_t>;

    ~Snapshot();
    Snapshot(const Snapshot&) = delete;
    Snapshot& operator=(const Snapshot&) = delete;

    // The next bytes, about 256 KiB of them or one row; false at the end, where the snapshot lets
    // go of its table.
    bool next(Bytes& chunk);
    // Lets go of the table, which must live until then. What was not read to its end is lost, and
    // no increment can follow it.
    void close();
    // Of a snapshot read to its end: its checksum, which an increment names.
    std::uint64_t id() const;

    // Called by the table, whose lock is held alone, before rows change.
    void keep(std::span<const std::uint64_t> ids);
    void keep_rows(std::span<const std::uint32_t> rows);
    void keep_row(std::uint32_t row);
    std::uint64_t n_bytes() const;

  private:
    friend class Table;
    struct State;  // what it holds of the table

    // `table`'s lock is held alone.
    Snapshot(Table& table, std::optional<std::uint64_t> since, Preimages&& rows);
    static Preimages row_preimages(Table& table);

    // Each adds at most one piece of its section; false when the section is over.
    bool put_header(Bytes& chunk);
    bool put_free_rows(Bytes& chunk);
    bool put_tombstones(Bytes& chunk);
    bool put_pending(Bytes& chunk);
    bool put_sketch(Bytes& chunk);
    bool put_rows(Bytes& chunk);
    bool put_checksum(Bytes& chunk);
    void provide();
    void write_row(std::uint32_t row, std::uint8_t* to) const;
    std::uint8_t* put_block(std::uint8_t* to);
    template <class T>
    bool put_piece(Bytes& chunk, std::vector<T>& records);

    Process process_;
    mutable std::mutex mutex_;  // of its readers; taken before the table's
    Table* table_;              // null when it was let go
    SnapshotHeader header_;
    std::unique_ptr<State> state_;
    SipHasher checksum_{checksum_key};
    std::optional<std::uint64_t> id_;
    std::size_t section_ = 0;
    std::size_t n_put_ = 0;  // of the section's records
};

}  // namespace freshrank
