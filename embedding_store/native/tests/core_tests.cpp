// What Python cannot reach: known hash secrets, both instruction sets, structures under ASan.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "core/index.hpp"
#include "core/pipeline.hpp"
#include "rings.hpp"
#include "series.hpp"
#include "tests/check.hpp"

namespace freshrank {

namespace {

using testing::check;

void siphash_equals_the_published_vector() {
    std::uint8_t input[15];
    for (std::uint8_t i = 0; i < 15; ++i) {
        input[i] = i;
    }
    const SipKey key{0x0706050403020100ULL, 0x0f0e0d0c0b0a0908ULL};
    // Source: the paper's appendix A.
    check(siphash24(input, 15, key) == 0xa129ca6149be45e5ULL, "the paper's vector");
    std::uint64_t words[2] = {3, 5};
    check(siphash24(words, 16, key) == siphash24_pair(3, 5, key), "the unrolled pair");
}

// Keys of one home bucket, found by trying: what somebody who knew the secret could send.
std::vector<std::uint64_t> colliding_keys(std::uint64_t secret, std::size_t n) {
    const IndexHash hash(secret);
    std::vector<std::uint64_t> keys;
    for (std::uint64_t key = 0; keys.size() < n; ++key) {
        if (hash(key) >> 51 == 77) {  // 13 high bits: one shard, and one bucket up to 1,024 of them
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

// Feature state: what is remembered of random keys, with sweeps that move what is left.
void live_map_mirrors_a_plain_map() {
    struct Number {
        int n = 0;
        bool is_empty() const { return n == 0; }
    };
    live::Map<Number> map;
    std::map<std::uint64_t, int> mirror;
    std::mt19937_64 random(11);
    for (int step = 1; step <= 20'000; ++step) {
        const std::uint64_t key = random() % 3'000 - 1'500;
        map.at(key).n = mirror[key] = step;
        if (step % 500 == 0) {
            const int oldest = step - 900;
            map.sweep(40'000, [&](const Number& one) { return one.n < oldest; });
            std::erase_if(mirror, [&](const auto& one) { return one.second < oldest; });
            check(map.size() == mirror.size(), "what is stale has left");
        }
        const std::uint64_t asked = random() % 3'000 - 1'500;
        const Number* found = map.find(asked);
        check((found == nullptr ? 0 : found->n) == (mirror.contains(asked) ? mirror[asked] : 0),
              "what is there is found");
    }
}

void live_batches_stay_within_their_arrays() {
    std::mt19937_64 random(12);
    live::SeriesOf<live::DecayedSum> sums(10.0);
    live::Rings rings(3);
    for (std::int64_t ts = 0; ts < 400; ++ts) {
        std::vector<std::int64_t> offsets{0};
        std::vector<std::uint64_t> users, keys;
        const auto is_known = std::make_unique<bool[]>(10), acted = std::make_unique<bool[]>(50);
        for (std::size_t r = 0; r < random() % 10; ++r) {
            users.push_back(random() % 20);
            is_known[r] = random() % 3 != 0;
            for (std::size_t i = random() % 5; i > 0; --i) {
                acted[keys.size()] = random() % 2 == 0;
                keys.push_back(random() % 5'000);
            }
            offsets.push_back(static_cast<std::int64_t>(keys.size()));
        }
        const std::vector<std::int64_t> times(users.size(), ts);
        std::vector<double> values(keys.size());
        sums.read_then_add(offsets.data(), users.size(), keys.data(), times.data(),
                           ts % 2 == 0 ? acted.get() : nullptr, values.data());
        const auto recents =
            rings.read_then_add(offsets.data(), users.size(), users.data(), is_known.get(),
                                times.data(), keys.data(), acted.get(), random());
        check(
            recents.offsets.size() == users.size() + 1 && recents.items.size() <= 3 * users.size(),
            "a list per request");
    }
    check(sums.entries().size() == sums.size() && rings.entries().size() <= 3 * rings.size(),
          "all entries");
}

void broken_invariants_stop_the_program_even_in_release() {
    bool has_thrown = false;
    try {
        expects(false, "on purpose");
    } catch (const std::logic_error&) {
        has_thrown = true;
    }
    check(has_thrown, "expects is never compiled out");
}

}  // namespace
}  // namespace freshrank

int main() {
    using namespace freshrank;
    siphash_equals_the_published_vector();
    keys_of_one_bucket_stay_exact_through_growth_and_removal();
    index_mirrors_a_plain_map();
    wide_loops_equal_portable_ones();
    growth_under_a_pipeline_does_not_disturb_it();
    pipeline_visits_every_entry_in_order_at_every_length();
    live_map_mirrors_a_plain_map();
    live_batches_stay_within_their_arrays();
    broken_invariants_stop_the_program_even_in_release();
    std::puts("core tests passed");
    return 0;
}
