// What Python cannot reach: known hash secrets, forged snapshots, random operations under ASan.
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <vector>

#include "core/index.hpp"
#include "core/pipeline.hpp"
#include "core/snapshot_layout.hpp"
#include "core/table.hpp"
#include "rings.hpp"
#include "series.hpp"
#include "tests/check.hpp"

namespace freshrank {

namespace {

using testing::check;
using testing::refusal;

TableConfig small_config(Optimizer optimizer = Optimizer::adagrad) {
    TableConfig config;
    config.dim = 5;
    config.first_order = true;
    config.optimizer = optimizer;
    config.lr = 0.1;
    config.eps = 1e-8;
    config.beta1 = 0.9;
    config.beta2 = 0.999;
    config.init_scale = 0.1;
    config.min_count = 2;
    config.ttl_s = 50;
    return config;
}

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
void wide_probes_equal_portable_ones() {
    const GroupProbes* wide = avx512_probes();
    if (wide == nullptr) {
        std::puts("no AVX-512 on this machine: only portable probes were tested");
        return;
    }
    const GroupProbes& portable = portable_probes();
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
    std::size_t n_all_undecided = 0;
    for (std::size_t start = 0; start < keys.size(); start += group_keys / 2 + 1) {
        const std::size_t n = std::min(1 + start % group_keys, keys.size() - start);
        std::uint64_t hashes[2][group_keys];
        std::uint32_t found[2][group_keys] = {};
        std::uint32_t undecided[2][group_keys] = {};
        std::size_t n_undecided[2];
        int side = 0;
        for (const GroupProbes* probes : {&portable, wide}) {
            probes->hash(index, keys.data() + start, n, hashes[side]);
            n_undecided[side] = probes->probe(index, keys.data() + start, hashes[side], n,
                                              found[side], undecided[side]);
            ++side;
        }
        check(std::equal(hashes[0], hashes[0] + n, hashes[1]), "equal hashes");
        check(std::equal(found[0], found[0] + n, found[1]), "equal rows");
        check(n_undecided[0] == n_undecided[1], "equally many undecided");
        check(std::equal(undecided[0], undecided[0] + n_undecided[0], undecided[1]),
              "the same undecided");
        n_all_undecided += n_undecided[0];
    }
    check(n_all_undecided > 100, "overflows were among them");
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

// Two slots of one table in random bags, in a batch of which they are slots 0 and 2.
void read_and_learn(Table& table, std::mt19937_64& random, Ids ids, std::uint32_t now_s) {
    std::vector<std::int64_t> offsets{0};
    while (offsets.back() < static_cast<std::int64_t>(ids.size())) {
        const auto length = static_cast<std::int64_t>(random() % 3);
        offsets.push_back(std::min(offsets.back() + length, static_cast<std::int64_t>(ids.size())));
    }
    const std::size_t n = offsets.size() - 1;
    const auto is_counted = std::make_unique<bool[]>(n);
    std::vector<std::uint64_t> requests(n);
    for (std::size_t i = 0; i < n; ++i) {
        is_counted[i] = random() % 2 == 0;
        requests[i] = random() % 10;
    }
    std::vector<float> rows(n * 3 * table.config().width());
    const std::span is_counted_span(is_counted.get(), n);
    const Bags first{{ids, offsets, Pooling::mean}, is_counted_span, 0};
    const Bags second{{ids, offsets, Pooling::sqrtn}, is_counted_span, 2};
    table.read(std::array{first, second}, requests, now_s, 3, rows.data());
    check(table.learn(n, 3, rows.data()) <= ids.size(), "at most every row");
    const FirstOfBags cut({ids, offsets, Pooling::mean}, random() % 3);
    table.lookup_pooled(cut.bags(), rows.data());
    check(table.apply_pooled(cut.bags(), rows.data()) <= cut.bags().ids.size(), "of those left");
}

// Random calls, then the restored table makes the same ones: bit-equal, and clean under ASan.
void random_operations(Table& table, std::uint64_t seed, int n) {
    std::mt19937_64 random(seed);
    std::vector<std::uint64_t> ids;
    std::vector<std::uint32_t> counts;
    std::vector<float> floats;
    for (int i = 0; i < n; ++i) {
        const std::size_t length = random() % 200;
        ids.clear();
        counts.clear();
        floats.assign(length * table.config().width(), 0.5f);
        for (std::size_t k = 0; k < length; ++k) {
            ids.push_back(random() % 300 - 150);
            counts.push_back(static_cast<std::uint32_t>(random() % 3));
        }
        const auto now_s = static_cast<std::uint32_t>(random() % 30 + static_cast<unsigned>(i));
        switch (random() % 7) {
            case 0:
                table.lookup(ids, floats.data());
                break;
            case 1:
                table.lookup_or_admit(ids, counts, now_s, floats.data());
                break;
            case 2:
                table.apply(ids, floats.data());
                break;
            case 3:
                table.expire(now_s, random() % 100);
                break;
            case 4:
                table.erase(Ids(ids).first(length / 20));
                break;
            case 5:
                read_and_learn(table, random, ids, now_s);
                break;
            default:
                table.trim_tombstones(table.advance() / 2);
        }
    }
}

void restored_table_repeats_the_original() {
    for (const auto optimizer :
         {Optimizer::sgd, Optimizer::adagrad, Optimizer::rowwise_adagrad, Optimizer::adam}) {
        Table table(small_config(optimizer), 10);
        random_operations(table, 1, 400);
        const auto restored = Table::restore(table.snapshot());
        random_operations(table, 2, 400);
        random_operations(*restored, 2, 400);
        check(table.size() > 0 && table.snapshot() == restored->snapshot(), "bit-equal");
    }
}

// Damage with a matching checksum, as no accident makes it: refused, or a table that works.
void forged_snapshots_never_crash() {
    Table table(small_config(), 0);
    random_operations(table, 3, 300);
    const auto whole = table.snapshot();
    std::mt19937_64 random(7);
    const std::uint64_t odd_values[] = {0, 1, 0xff, 0x7fffffff, 0xffffffff, ~0ULL, 1ULL << 63};
    int n_refused = 0;
    int n_opened = 0;
    for (int i = 0; i < 1500; ++i) {
        auto forged = whole;
        const std::size_t n_covered = forged.size() - 8;
        // The header mostly: its counts and lengths are what must not be trusted.
        const std::size_t end = i % 4 == 0 ? n_covered - 8 : 208;
        const std::size_t at = 8 + random() % (end - 8);
        const std::uint64_t value = i % 3 == 0 ? random() : odd_values[random() % 7];
        std::memcpy(forged.data() + at, &value, 1 + random() % 8);
        const std::uint64_t checksum = siphash24(forged.data(), n_covered, checksum_key);
        std::memcpy(forged.data() + n_covered, &checksum, 8);
        std::unique_ptr<Table> opened;
        if (!refusal([&] { opened = Table::restore(forged); }).empty()) {
            ++n_refused;
            continue;
        }
        ++n_opened;
        random_operations(*opened, 4, 5);
        check(Table::restore(opened->snapshot())->size() == opened->size(), "opens again");
    }
    check(n_refused > 300 && n_opened > 30, "both outcomes were seen");
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
    wide_probes_equal_portable_ones();
    pipeline_visits_every_entry_in_order_at_every_length();
    restored_table_repeats_the_original();
    forged_snapshots_never_crash();
    live_map_mirrors_a_plain_map();
    live_batches_stay_within_their_arrays();
    broken_invariants_stop_the_program_even_in_release();
    std::puts("core tests passed");
    return 0;
}
