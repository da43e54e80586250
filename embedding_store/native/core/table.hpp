// The training table: admission, rows with optimizer state, expiry, versions. Every public call
// takes the table's lock: readers share it, writers have it alone. Batch calls split their work
// over the table's own threads, under the caller's lock: workers.hpp says how.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <vector>

#include "budget.hpp"
#include "config.hpp"
#include "distinct.hpp"
#include "index.hpp"
#include "inspection.hpp"
#include "lock.hpp"
#include "metadata.hpp"
#include "optimizer.hpp"
#include "owned.hpp"
#include "pending.hpp"
#include "pool.hpp"
#include "pooling.hpp"
#include "workers.hpp"

namespace freshrank {

using Ids = std::span<const std::uint64_t>;

inline constexpr std::uint32_t format_version = 1;

class Snapshot;

// Where a snapshot comes from: its next bytes, none at its end.
using SnapshotSource = std::function<std::span<const std::uint8_t>()>;

struct Statistics {
    std::uint64_t rows, capacity, pending, admitted, filtered, expired, erased, tombstones, bytes,
        clock_s, evicted, sketch_admitted, threshold, peak_bytes, budget_bytes, max_rows,
        snapshot_bytes;
};

struct Delta {
    std::vector<std::uint64_t> keys;
    std::vector<float> rows;
    std::vector<std::uint64_t> tombstones;
};

// The ids of one slot of a batch of n rows, and how they become one row each.
struct Bags {
    IdBags of;                         // n bags
    std::span<const bool> is_counted;  // n: whether row i's ids count as occurrences
    std::size_t slot = 0;              // its place among the batch's slots
};

class Table {
  public:
    // `budget`, where given, is shared with other tables.
    Table(const TableConfig& config, std::uint64_t initial_rows,
          std::shared_ptr<Budget> budget = nullptr);

    const TableConfig& config() const { return config_; }
    Policy policy() const;
    void configure(const Policy& policy);

    // How many threads share a batch call; results do not depend on it.
    void set_threads(unsigned n_threads);
    unsigned n_threads() const;

    void lookup(Ids ids, float* out) const;
    void lookup_or_admit(Ids ids, std::span<const std::uint32_t> counts, std::uint32_t now_s,
                         float* out);
    std::uint64_t apply(Ids ids, const float* gradients);

    // The same with one row per bag; each id of a bag gets its share of the bag's gradient.
    void lookup_pooled(const IdBags& bags, float* out) const;
    std::uint64_t apply_pooled(const IdBags& bags, const float* gradients);

    // A batch of n rows and n_slots slots, of which `bags` are this table's. `pooled` is
    // [n, n_slots, width]; `learn` takes the gradients of the last read in the same shape.
    void read(std::span<const Bags> bags, std::span<const std::uint64_t> requests,
              std::uint32_t now_s, std::size_t n_slots, float* pooled);
    std::uint64_t learn(std::size_t n_rows, std::size_t n_slots, const float* gradients);

    void contains(Ids ids, std::uint8_t* out) const;
    void pending(Ids ids, std::uint32_t* out) const;
    void born_s(Ids ids, std::uint32_t* out) const;
    void last_seen_s(Ids ids, std::uint32_t* out) const;

    std::uint64_t expire(std::uint32_t now_s, std::uint64_t max_rows);
    std::uint64_t erase(Ids ids);

    std::uint64_t version() const;
    std::uint64_t advance();
    Delta delta(std::uint64_t since) const;
    std::uint64_t trim_tombstones(std::uint64_t through);

    // The table as it is now, to be read while it goes on; one at a time. With `since`, the id of
    // this table's last one, what changed from then on.
    std::unique_ptr<Snapshot> begin_snapshot(std::optional<std::uint64_t> since = {});
    std::vector<std::uint8_t> snapshot();
    // From a whole snapshot and the increments that follow it.
    static std::unique_ptr<Table> restore(std::span<const SnapshotSource> chain,
                                          std::shared_ptr<Budget> budget = nullptr);

    // Up to max_rows rows from row number `start` on; put_rows inserts or replaces whole rows.
    Inspection inspect(std::uint64_t id) const;
    Rows rows_from(std::uint32_t start, std::uint64_t max_rows) const;
    void put_rows(const RowsView& rows);

    std::vector<std::uint64_t> keys() const;
    Statistics statistics() const;
    std::uint64_t size() const;
    static std::uint64_t tombstone_bytes_for(std::uint64_t n) {
        return RecordMap<Tombstone>::bytes_for(n);
    }

  private:
    struct Tombstone {
        std::uint64_t key = 0;
        std::uint64_t version = 0;  // 0 = nothing here
        bool is_free() const { return version == 0; }
    };

    struct Counters {
        std::uint64_t version = 1;
        std::uint64_t clock_s = 0;
        std::uint64_t n_draws = 0;
        std::uint64_t n_admitted = 0;
        std::uint64_t n_filtered = 0;
        std::uint64_t n_expired = 0;
        std::uint64_t n_erased = 0;
        std::uint64_t n_evicted = 0;
        std::uint64_t n_sketch_admitted = 0;
        std::uint64_t n_wanted = 0;  // births of the last call that found no room
        std::uint32_t row_cursor = 0;
        std::uint32_t evict_cursor = 0;

        std::uint64_t n_removed() const { return n_expired + n_erased + n_evicted; }
    };

    // One occurrence: equal ones of a batch count once.
    struct Occurrence {
        std::uint64_t request = 0;
        std::uint64_t id = 0;
        bool operator==(const Occurrence&) const = default;
    };

    // What a read leaves for the gradients' way back.
    struct Reading {
        struct Part {
            std::size_t slot = 0;
            Pooling pooling = Pooling::sum;
            bool is_single = false;  // exactly one id in every row: nothing to pool
            std::vector<std::int64_t> offsets;

            std::size_t n_ids(std::size_t row) const {
                return is_single ? 1 : static_cast<std::size_t>(offsets[row + 1] - offsets[row]);
            }
        };
        bool is_open = false;
        std::size_t n_rows = 0;
        std::size_t n_slots = 0;
        std::uint64_t n_removed = 0;
        std::vector<Part> parts;
        std::vector<std::uint32_t> rows;  // of every id, part after part
    };

    // The rows of the last lookup_or_admit, for the gradients that follow. A row that comes or
    // leaves clears the ids.
    struct LookedUp {
        std::vector<std::uint64_t> ids;
        std::vector<std::uint32_t> rows;
    };

    // The rows that one share of the workers moves, each once, and the gradient that moves each.
    struct Moves {
        std::size_t n_rows = 0;
        std::size_t n_repeats = 0;
        std::vector<std::uint32_t> rows;      // in the batch's order, as all of these
        std::vector<const float*> gradients;  // the caller's own, or a sum of several
        std::vector<std::uint32_t> repeats;   // entries whose row had come before
        std::vector<float> sums;
        std::vector<float> scratch;

        // Makes room for n_max entries: what may throw, before anything is marked.
        void reset(std::size_t n_max, std::uint32_t width);
        template <class EntryOf, class GradientOf>
        void gather(std::span<const std::uint32_t> row_of, std::size_t n_entries, EntryOf entry_of,
                    Metadata& metadata, GradientOf gradient_of);
        template <class GradientOf>
        void sum_repeats(std::span<const std::uint32_t> row_of, const Metadata& metadata,
                         std::uint32_t width, GradientOf gradient_of);
    };

    // Gradients of bags as each of their ids gets them.
    struct BagGradients {
        std::vector<const float*> of_ids;
        std::vector<float> parts;  // of bags whose ids get less than all
        std::uint32_t width = 0;

        void reset(std::size_t n_ids, std::size_t n_bags, std::uint32_t n_floats);
        void add(const float* gradient, Pooling pooling, std::size_t n_ids);
    };

    unsigned owner_of(std::uint64_t id) const;
    template <class Counter>
    void count(Ids ids, std::uint32_t now_s, std::uint32_t* rows, Counter&& counter);
    template <class CountOf>
    void admit_absent(Ids ids, std::uint32_t now_s, std::uint32_t* rows, CountOf&& count_of);
    void find_newborn(Ids ids, std::uint32_t* rows) const;
    void remember(std::span<const Bags> bags, std::size_t n_rows, std::size_t n_slots);
    void pool(std::span<const Bags> bags, std::size_t first, std::size_t end, float* pooled) const;
    void find_rows(Ids ids, std::uint32_t* rows) const;
    void read_and_count(Ids ids, std::span<const std::uint32_t> counts, std::uint32_t now_s,
                        std::uint32_t* rows, float* out);
    void read_and_count_shared(Ids ids, std::span<const std::uint32_t> counts, std::uint32_t now_s,
                               std::uint32_t* rows, float* out);
    unsigned owner_of_row(std::uint32_t row) const;
    void find_again(Ids ids);
    template <class GradientOf>
    std::uint64_t step(std::span<const std::uint32_t> entries, GradientOf gradient_of);
    void keep(Ids ids);
    void keep_rows(std::span<const std::uint32_t> rows);
    void touch(std::uint32_t row, std::uint32_t count, std::uint32_t now_s);
    std::uint32_t admit(std::uint64_t id, std::uint32_t count, std::uint32_t now_s);
    std::uint64_t passed(std::uint64_t id, std::uint32_t count, std::uint64_t enough);
    std::uint32_t give_birth(std::uint64_t id, std::uint32_t now_s);
    void remove_row(std::uint64_t id);
    void wipe(std::uint32_t row);
    void forget_all_but_rows();
    PendingCounts empty_pending();
    // A row's floats are its weights, then its state, which may stand apart.
    const float* state(std::uint32_t row) const;
    float* state(std::uint32_t row);
    void get_floats(std::uint32_t row, float* to) const;
    void set_floats(std::uint32_t row, const float* from);
    void move_clock(std::uint32_t now_s);
    bool extend_room();
    void fit_to_room();
    void make_room();
    void evict(std::uint64_t n_rows);
    unsigned tightening() const;
    std::uint32_t threshold() const;
    std::uint32_t threshold_or_more_room();
    bool is_stale(std::uint32_t last_seen_s) const;

    Tally tally_;  // before all that it counts
    TableConfig config_;
    std::vector<SliceParameters> slices_;
    std::uint32_t n_state_;
    mutable FairSharedMutex mutex_;
    Index index_;
    Numbers numbers_;
    RowSlabs slabs_;
    Metadata metadata_;
    PendingCounts pending_;
    RecordMap<Tombstone> tombstones_;
    Room room_;
    Counters counters_;
    bool has_ended_version_ = false;  // by advance(), or before the snapshot it was restored from
    // Of the batch in hand, and kept for their memory.
    Reading reading_;
    LookedUp looked_up_;
    std::vector<std::uint32_t> absent_;  // entries whose id had no row
    BagGradients bag_gradients_;
    Owned owned_;
    std::vector<Moves> moves_;                       // of every share of the work
    std::vector<Distinct<Occurrence>> occurrences_;  // of every share of the work
    std::unique_ptr<Workers> workers_ = std::make_unique<Workers>(1);

    Snapshot* snapshot_ = nullptr;                // under way
    std::optional<std::uint64_t> last_snapshot_;  // what an increment can follow

    friend class Snapshot;
    friend class SnapshotReader;
};

}  // namespace freshrank
