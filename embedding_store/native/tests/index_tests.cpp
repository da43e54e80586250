// The index: known hash secrets, both instruction sets, growth in the middle of everything.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <new>
#include <random>
#include <span>
#include <vector>

#include "core/index.hpp"
#include "core/pending.hpp"
#include "core/pipeline.hpp"
#include "tests/check.hpp"

namespace {

constexpr std::int64_t never = -1;
std::int64_t n_allocations_left = never;  // then one fails

void* allocate(std::size_t n_bytes, std::size_t alignment) {
    if (n_allocations_left != never && n_allocations_left-- == 0) {
        throw std::bad_alloc();
    }
    void* const memory =
        std::aligned_alloc(alignment, (n_bytes + alignment - 1) / alignment * alignment);
    return memory != nullptr ? memory : throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t n_bytes) {
    return allocate(n_bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t n_bytes, std::align_val_t alignment) {
    return allocate(n_bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
    std::free(memory);
}

namespace freshrank {

namespace {

using testing::check;

// Keys of one home bucket, found by trying: what somebody who knew the secret could send.
std::vector<std::uint64_t> colliding_keys(std::uint64_t secret, std::size_t n) {
    const IndexHash hash(secret);
    std::vector<std::uint64_t> keys;
    for (std::uint64_t key = 0; keys.size() < n; ++key) {
        if (hash(key) >> 51 == 77) {  // 13 high bits: one bucket up to 8,192 of them, a few beyond
            keys.push_back(key);
        }
    }
    return keys;
}

void keys_of_one_bucket_stay_exact_through_growth_and_removal() {
    const std::uint64_t secret = 99;
    Index index(secret);
    const auto keys = colliding_keys(secret, 1500);
    for (std::uint32_t i = 0; i < keys.size(); ++i) {
        check(index.find(keys[i]) == no_row, "not there yet");
        index.insert(keys[i], i);
    }
    for (std::uint32_t i = 0; i < keys.size(); ++i) {
        check(index.find(keys[i]) == i, "found after growth");
    }
    for (std::uint32_t i = 0; i < keys.size(); i += 2) {
        check(index.erase(keys[i]) == i, "erased");
        check(index.erase(keys[i]) == no_row, "erased once");
    }
    for (std::uint32_t i = 0; i < keys.size(); ++i) {
        check(index.find(keys[i]) == (i % 2 == 0 ? no_row : i), "only the others remain");
    }
    for (std::uint32_t i = 1; i < keys.size(); i += 2) {
        index.erase(keys[i]);
    }
    // Every overflow counter is back at zero: each home bucket answers alone.
    for (std::uint64_t key = 0; key < 100'000; ++key) {
        check(index.home_bucket(index.hash(key)).overflow == 0, "no trace of what was removed");
    }
}

void index_mirrors_a_plain_map() {
    std::mt19937_64 random(5);
    Index index(1);
    std::map<std::uint64_t, std::uint32_t> mirror;
    for (std::uint32_t i = 0; i < 100'000; ++i) {
        const std::uint64_t key = random() % 5000 - 2500;  // both ends of the range of ids
        const auto known = mirror.find(key);
        check(index.find(key) == (known == mirror.end() ? no_row : known->second), "find");
        if (known == mirror.end()) {
            index.insert(key, i);
            mirror[key] = i;
        } else if (random() % 2 == 0) {
            check(index.erase(key) == known->second, "erase");
            mirror.erase(known);
        }
    }
}

// Every compiled-in instruction set gives the same answers, on a table with many overflows.
void wide_loops_equal_portable_ones() {
    const GroupLoops* wide = avx512_loops();
    if (wide == nullptr) {
        std::puts("no AVX-512 on this machine: only portable loops were tested");
        return;
    }
    std::mt19937_64 random(6);
    Index index(2);
    std::vector<std::uint64_t> keys{0, ~0ULL, 1ULL << 63};
    for (std::uint32_t i = 0; i < 20'000; ++i) {
        keys.push_back(random());
        index.insert(keys.back(), i);
        if (i % 3 == 0) {
            index.erase(keys[random() % keys.size()]);
        }
    }
    const auto is_elsewhere = [&](std::uint64_t key) {
        const Bucket& home = index.home_bucket(index.hash(key));
        return home.match(key) == 0 && index.find(key) != no_row;
    };
    check(std::count_if(keys.begin(), keys.end(), is_elsewhere) > 100, "keys overflow");
    for (const std::uint32_t width : {1U, 9U, 15U, 16U, 17U, 31U, 32U, 64U, 70U}) {
        RowSlabs slabs(width);
        slabs.ensure(20'000);
        for (std::uint32_t row = 0; row < 20'000; ++row) {
            std::fill_n(slabs.at(row), width, static_cast<float>(row + 1));
        }
        const std::size_t n = keys.size() - width;
        std::vector<float> out[2];
        std::vector<std::uint32_t> rows[2];
        for (const bool is_wide : {false, true}) {
            const GroupLoops& loops = is_wide ? *wide : portable_loops();
            out[is_wide].assign(n * width + 1, -7.0f);
            gather(index, slabs, std::span(keys).first(n), width, out[is_wide].data(), loops);
            for_each_row(
                index, std::span(keys).first(n), fetch_nothing,
                [&](std::size_t, std::uint32_t row) { rows[is_wide].push_back(row); }, loops);
        }
        check(out[0] == out[1] && out[0].back() == -7.0f, "equal rows and nothing beside them");
        check(rows[0] == rows[1], "equally found");
        for (std::size_t i = 0; i < n; ++i) {
            const std::uint32_t row = index.find(keys[i]);
            check(out[0][i * width] == static_cast<float>(row == no_row ? 0 : row + 1) &&
                      rows[0][i] == row,
                  "the row of the id");
        }
    }
}

// What bounds the longest call: growth is spread over inserts, whether many keys or few.
void no_insert_moves_more_than_a_few_buckets() {
    for (const std::uint64_t n_reserved : {0U, 100'000U, 600'000U}) {
        std::mt19937_64 random(9);
        Index index(4);
        index.reserve(n_reserved);
        for (int i = 0; i < 10'000; ++i) {
            check(index.find(random()) == no_row, "every home has memory");
        }
        std::vector<std::uint64_t> keys;
        std::uint64_t most = 0;
        for (std::uint32_t i = 0; i < 700'000; ++i) {
            keys.push_back(random());
            const std::uint64_t n_before = index.n_moves();
            index.insert(keys.back(), i);
            most = std::max(most, index.n_moves() - n_before);
            const std::uint32_t seen = i / 3;  // anywhere: moved, not moved, in between
            check(index.find(keys[seen]) == seen && index.find(keys.back()) == i, "all the while");
        }
        check(most <= 4, "two homes, or a few where little room is left, and once the first page");
        const std::uint64_t n_used = keys.size() * sizeof(Bucket) / Bucket::n_slots;
        check(index.n_bytes() * 10 < n_used * 22, "not more memory than growth takes");
        for (std::uint32_t i = 0; i < keys.size(); ++i) {
            check(index.erase(keys[i]) == i, "found at last");
        }
        index.buckets().each([](const Bucket& b) { check(b.count + b.overflow == 0, "all gone"); });
    }
}

template <class Map>
void check_within_limits(std::span<const std::uint64_t> limits) {
    std::mt19937_64 random(10);
    Tally tally;
    Map map(3, &tally);
    std::vector<std::uint64_t> keys;
    for (const std::uint64_t n_max : limits) {  // each raises the one before
        map.limit(n_max);
        while (keys.size() < n_max) {
            keys.push_back(random());
            map.insert(keys.back(), {});
            if (keys.size() % 9 == 0) {  // others come and go
                map.erase_or(keys[keys.size() / 2], {});
                keys[keys.size() / 2] = random();
                map.insert(keys[keys.size() / 2], {});
            }
        }
        check(tally.n_bytes == map.n_bytes(), "all of it is counted");
        check(tally.peak_bytes <= Map::bytes_for(n_max), "never more than a limit allows");
    }
    check(std::all_of(keys.begin(), keys.end(),
                      [&](std::uint64_t key) { return map.locate(key).first != nullptr; }),
          "every key is there");
}

void a_limited_map_never_takes_more_than_it_was_given() {
    for (const auto& limits : {std::vector<std::uint64_t>{1, 2, 3, 30, 300, 3'000, 7'000, 7'500},
                               {100'000, 110'000, 160'000, 161'000, 400'000},
                               {50'000, 400'000}}) {
        check_within_limits<Index>(limits);
        check_within_limits<BucketMap<PendingBucket>>(limits);
    }
    check(Index::bytes_for(1'000'000) < 1'000'000 * 64 * 10 / Bucket::load_times_ten + 2 * 131'072,
          "no more than it needs");
}

// Ranges of hashes one after another, with inserts and removals between two of them.
void ranges_of_hashes_visit_every_key_once_while_the_map_grows() {
    for (const std::uint64_t n_keys : {0U, 1U, 30U, 1'500U, 5'000U, 60'000U, 90'000U}) {
        for (const bool has_long_chain : {false, true}) {
            std::mt19937_64 random(12);
            Index index(99);
            std::map<std::uint64_t, int> n_visits;
            const auto add = [&](std::uint64_t key) {
                if (n_visits.try_emplace(key, 0).second) {
                    index.insert(key, 7);
                }
            };
            for (const std::uint64_t key : colliding_keys(99, has_long_chain ? 1'500 : 0)) {
                add(key);
            }
            while (n_visits.size() < n_keys) {
                add(random());
            }
            const auto all = n_visits;
            std::vector<std::uint64_t> bounds{0, 1, ~0ULL, 78ULL << 51, 77ULL << 51, 5, 6};
            for (int i = 0; i < 40; ++i) {
                bounds.push_back(random());
            }
            std::sort(bounds.begin(), bounds.end());
            for (std::size_t i = 0; i < bounds.size(); ++i) {
                const std::uint64_t first = bounds[i];
                const std::uint64_t last = i + 1 < bounds.size() ? bounds[i + 1] - 1 : ~0ULL;
                index.each_in_hash_range(first, last, [&](std::uint64_t key, std::uint32_t value) {
                    check(first <= index.hash(key) && index.hash(key) <= last, "of the range");
                    check(value == 7, "with its value");
                    ++n_visits[key];
                });
                for (int k = 0; k < 500; ++k) {
                    const std::uint64_t key = random();
                    add(key);
                    if (k % 5 == 0) {
                        index.erase(key);
                    }
                }
            }
            for (const auto& [key, n] : n_visits) {
                check(all.contains(key) ? n == 1 : n <= 1, "once");
            }
        }
    }
}

// Fails at each of the allocations in turn, also in the middle of a growth with a long chain.
void memory_that_fails_loses_no_key() {
    auto keys = colliding_keys(99, 900);
    std::mt19937_64 random(13);
    for (int i = 0; i < 12'000; ++i) {
        keys.push_back(random());
    }
    std::shuffle(keys.begin(), keys.end(), random);
    bool has_failed = true;
    for (std::int64_t n_good = 0; has_failed; ++n_good) {
        Index index(99);
        has_failed = false;
        n_allocations_left = n_good;
        for (std::uint32_t i = 0; i < keys.size();) {
            try {
                index.insert(keys[i], i);
                ++i;
            } catch (const std::bad_alloc&) {
                check(!has_failed, "it fails once");
                has_failed = true;
                for (std::uint32_t k = 0; k < keys.size(); ++k) {
                    check(index.find(keys[k]) == (k < i ? k : no_row), "as before");
                }
            }
        }
        n_allocations_left = never;
        check(has_failed || n_good > 10, "the test has made it fail");
        for (std::uint32_t i = 0; i < keys.size(); ++i) {
            check(index.erase(keys[i]) == i, "all are there");
        }
        index.buckets().each([](const Bucket& b) { check(b.count + b.overflow == 0, "all gone"); });
    }
}

void growth_under_a_pipeline_does_not_disturb_it() {
    Index index(5);
    std::vector<std::uint64_t> ids(50'000);
    for (std::size_t i = 0; i < ids.size(); ++i) {
        ids[i] = i / 2 * 0x9e3779b97f4a7c15ULL;
    }
    for_each_row(index, ids, fetch_nothing, [&](std::size_t i, std::uint32_t row) {
        if (row == no_row && index.find(ids[i]) == no_row) {
            index.insert(ids[i], static_cast<std::uint32_t>(i));
        }
    });
    for (std::size_t i = 0; i < ids.size(); ++i) {
        check(index.find(ids[i]) == i / 2 * 2, "every id at its first entry");
    }
}

void pipeline_visits_every_entry_in_order_at_every_length() {
    Index index(3);
    for (std::uint64_t key = 0; key < 1000; key += 2) {
        index.insert(key, static_cast<std::uint32_t>(key));
    }
    for (std::size_t n = 0; n < 3 * group_keys + 3; ++n) {
        std::vector<std::uint64_t> ids(n);
        for (std::size_t i = 0; i < n; ++i) {
            ids[i] = i * 7 % 1000;
        }
        std::size_t next = 0;
        for_each_row(index, ids, fetch_nothing, [&](std::size_t i, std::uint32_t row) {
            check(i == next++, "in order");
            check(row == (ids[i] % 2 == 0 ? ids[i] : no_row), "the right row");
        });
        check(next == n, "all of them");
    }
}

}  // namespace
}  // namespace freshrank

int main() {
    using namespace freshrank;
    keys_of_one_bucket_stay_exact_through_growth_and_removal();
    index_mirrors_a_plain_map();
    wide_loops_equal_portable_ones();
    no_insert_moves_more_than_a_few_buckets();
    a_limited_map_never_takes_more_than_it_was_given();
    ranges_of_hashes_visit_every_key_once_while_the_map_grows();
    memory_that_fails_loses_no_key();
    growth_under_a_pipeline_does_not_disturb_it();
    pipeline_visits_every_entry_in_order_at_every_length();
    std::puts("index tests passed");
    return 0;
}
