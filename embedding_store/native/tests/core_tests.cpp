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
    live_map_mirrors_a_plain_map();
    live_batches_stay_within_their_arrays();
    broken_invariants_stop_the_program_even_in_release();
    std::puts("core tests passed");
    return 0;
}
