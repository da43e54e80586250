// The index: known hash secrets, both instruction sets, growth in the middle of everything.
#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "core/index.hpp"
#include "core/pipeline.hpp"
#include "tests/check.hpp"

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
        std::vector<std::uint8_t> found[2];
        for (const bool is_wide : {false, true}) {
            out[is_wide].assign(n * width + 1, -7.0f);
            found[is_wide].resize(n);
            gather(index, slabs, std::span(keys).first(n), width, out[is_wide].data(),
                   found[is_wide].data(), is_wide ? *wide : portable_loops());
        }
        check(out[0] == out[1] && out[0].back() == -7.0f, "equal rows and nothing beside them");
        check(found[0] == found[1], "equally found");
        for (std::size_t i = 0; i < n; ++i) {
            const std::uint32_t row = index.find(keys[i]);
            check(out[0][i * width] == static_cast<float>(row == no_row ? 0 : row + 1) &&
                      found[0][i] == (row != no_row),
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
        check(most <= 6, "two homes and the memory they need");
        const std::uint64_t n_used = keys.size() * sizeof(Bucket) / Bucket::n_slots;
        check(index.n_bytes() * 10 < n_used * 22, "not more memory than growth takes");
        for (std::uint32_t i = 0; i < keys.size(); ++i) {
            check(index.erase(keys[i]) == i, "found at last");
        }
        index.each_bucket([](const Bucket& b) { check(b.count + b.overflow == 0, "all gone"); });
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
    growth_under_a_pipeline_does_not_disturb_it();
    pipeline_visits_every_entry_in_order_at_every_length();
    std::puts("index tests passed");
    return 0;
}
