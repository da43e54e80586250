#include "serving.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "pipeline.hpp"

namespace freshrank {

namespace {

// About 0.1 ms of writing at 50 ns a key: what a reader may wait for.
constexpr std::size_t slice_keys = 2048;

std::uint32_t checked_width(std::uint32_t width) {
    return in_range("width", width, 1, max_dim + 1);
}

RowDecoders::Decode decoder_of(RowType type) {
    switch (type) {
        case RowType::float32:
            return nullptr;
        case RowType::float16:
            return best_decoders().float16;
        case RowType::int8:
            return best_decoders().int8;
    }
    return nullptr;
}

// Calls f with every slice of the keys and where it starts.
template <class F>
void in_slices(std::span<const std::uint64_t> keys, F&& f) {
    for (std::size_t start = 0; start < keys.size(); start += slice_keys) {
        f(keys.subspan(start, std::min(slice_keys, keys.size() - start)), start);
    }
}

}  // namespace

ServingTable::ServingTable(std::uint32_t width, std::uint64_t initial_rows, RowType type)
    : width_(checked_width(width)),
      type_(type),
      decode_(decoder_of(type)),
      index_(random_secret()),
      rows_(row_bytes(type, width)) {
    require(initial_rows < no_row, "initial_rows is " + std::to_string(initial_rows) +
                                       "; a table holds at most 2^32 - 1 rows");
    if (initial_rows > 0) {
        index_.reserve(initial_rows);
        rows_.ensure(static_cast<std::uint32_t>(initial_rows - 1));
    }
}

// Calls use(i, bytes) in order for every id, bytes being null where absent.
template <class Use>
void ServingTable::for_each_stored(std::span<const std::uint64_t> ids, Use&& use) const {
    for_each_row(
        index_, ids, [&](std::uint32_t row) { return std::array{rows_.lines(row)}; },
        [&](std::size_t i, std::uint32_t row) { use(i, row == no_row ? nullptr : rows_.at(row)); });
}

void ServingTable::lookup(std::span<const std::uint64_t> ids, float* out,
                          std::uint8_t* found) const {
    const std::shared_lock lock(mutex_);
    with_width(width_, [&](auto n_floats) {
        for_each_stored(ids, [&](std::size_t i, const std::uint8_t* bytes) {
            float* to = out + i * n_floats;
            found[i] = bytes != nullptr;
            if (bytes == nullptr) {
                std::memset(to, 0, n_floats * sizeof(float));
            } else if (decode_ == nullptr) {
                std::memcpy(to, bytes, n_floats * sizeof(float));
            } else {
                decode_(bytes, n_floats, to);
            }
        });
    });
}

void ServingTable::lookup_pooled(const IdBags& bags, float* out, std::uint32_t* n_found) const {
    const std::shared_lock lock(mutex_);
    std::fill_n(n_found, bags.size(), 0);
    std::vector<float> decoded(width_);
    with_width(width_, [&](auto n_floats) {
        pool_bags(bags, n_floats, out, [&](auto&& use) {
            for_each_stored(bags.ids, [&](std::size_t i, const std::uint8_t* bytes) {
                if (bytes == nullptr) {
                    return;
                }
                if (decode_ == nullptr) {
                    std::memcpy(decoded.data(), bytes, n_floats * sizeof(float));
                } else {
                    decode_(bytes, n_floats, decoded.data());
                }
                ++n_found[use(i, decoded.data())];
            });
        });
    });
}

void ServingTable::check(std::span<const std::uint64_t> keys, const float* rows) const {
    for (std::size_t i = 0; i < keys.size(); ++i) {
        check_row(type_, keys[i], rows + i * width_, width_);
    }
}

void ServingTable::upsert(std::span<const std::uint64_t> keys, const float* rows) {
    check(keys, rows);
    const std::size_t n_bytes = rows_.row_bytes();
    std::vector<std::uint8_t> encoded(std::min(slice_keys, keys.size()) * n_bytes);
    in_slices(keys, [&](std::span<const std::uint64_t> slice, std::size_t start) {
        for (std::size_t i = 0; i < slice.size(); ++i) {
            encode_row(type_, rows + (start + i) * width_, width_, encoded.data() + i * n_bytes);
        }
        const std::lock_guard lock(mutex_);
        put(slice, encoded.data());
    });
}

void ServingTable::put(std::span<const std::uint64_t> keys, const std::uint8_t* encoded) {
    const std::uint32_t n_before = numbers_.high_water();
    const std::uint32_t n_free_before = numbers_.n_free();
    for_each_row(
        index_, keys, [&](std::uint32_t row) { return std::array{rows_.lines(row)}; },
        [&](std::size_t i, std::uint32_t row) {
            const bool has_newborn =
                numbers_.high_water() != n_before || numbers_.n_free() != n_free_before;
            if (row == no_row && has_newborn) {
                row = index_.find(keys[i]);
            }
            if (row == no_row) {
                const std::uint64_t hash = index_.hash(keys[i]);
                index_.prepare_insert(hash);
                row = numbers_.next();
                rows_.ensure(row);
                numbers_.take();
                index_.place(keys[i], hash, row);
            }
            std::memcpy(rows_.at(row), encoded + i * rows_.row_bytes(), rows_.row_bytes());
        });
}

std::uint64_t ServingTable::remove(std::span<const std::uint64_t> keys) {
    std::uint64_t n_removed = 0;
    in_slices(keys, [&](std::span<const std::uint64_t> slice, std::size_t) {
        const std::lock_guard lock(mutex_);
        for (const std::uint64_t key : slice) {
            numbers_.prepare_give_back();
            const std::uint32_t row = index_.erase(key);
            if (row != no_row) {
                std::memset(rows_.at(row), 0, rows_.row_bytes());
                numbers_.give_back(row);
                ++n_removed;
            }
        }
    });
    return n_removed;
}

std::vector<std::uint64_t> ServingTable::keys() const {
    std::vector<std::uint64_t> keys;
    {
        const std::shared_lock lock(mutex_);
        keys.reserve(numbers_.n_live());
        index_.buckets().each([&](const Bucket& bucket) {
            keys.insert(keys.end(), bucket.keys, bucket.keys + bucket.count);
        });
    }
    std::sort(keys.begin(), keys.end());
    return keys;
}

std::uint64_t ServingTable::size() const {
    const std::shared_lock lock(mutex_);
    return numbers_.n_live();
}

ServingTable::Statistics ServingTable::statistics() const {
    const std::shared_lock lock(mutex_);
    return {.rows = numbers_.n_live(),
            .capacity = rows_.capacity(),
            .bytes = index_.n_bytes() + rows_.n_bytes() + numbers_.n_bytes(),
            .index_bytes = index_.n_bytes(),
            .row_bytes = rows_.row_bytes()};
}

}  // namespace freshrank
