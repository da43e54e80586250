// What a serving table keeps of a row, and every instruction set's way back from it.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/packed_rows.hpp"
#include "core/row_type.hpp"
#include "core/serving.hpp"
#include "tests/check.hpp"

namespace freshrank {
namespace {

using testing::check;
using testing::refusal;

// Finite halves in ascending order: 0 .. 0x7bff are the positive ones.
void halves_convert_exactly_and_round_to_nearest_even() {
    for (std::uint32_t half = 0; half < 0x7c00; ++half) {
        const float value = float_of(static_cast<std::uint16_t>(half));
        // Source: IEEE 754-2008, 3.4: 5 bits of exponent with bias 15, 10 of fraction.
        const int exponent = static_cast<int>(half >> 10);
        const double fraction = half & 0x3ff;
        const double expected =
            exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
        check(double{value} == expected, "the half's value");
        check(float_of(static_cast<std::uint16_t>(half | 0x8000)) == -value, "its negative");
        check(half_of(value) == half && half_of(-value) == (half | 0x8000), "there and back");
        if (half == 0x7bff) {
            continue;
        }
        const double next = float_of(static_cast<std::uint16_t>(half + 1));
        const auto middle = static_cast<float>((double{value} + next) / 2);  // exact: 12 bits
        check(half_of(middle) == half + (half & 1), "a tie goes to the even one");
        check(half_of(std::nextafter(middle, 0.0f)) == half, "below the middle");
        check(half_of(std::nextafter(middle, 1e9f)) == half + 1, "above the middle");
    }
    check(half_of(std::nextafter(65520.0f, 0.0f)) == 0x7bff, "the last that fits");
    check(half_of(65520.0f) == 0x7c00 && half_of(-INFINITY) == 0xfc00, "infinite from there on");
    check((half_of(NAN) & 0x7fff) > 0x7c00, "not a number");
}

// All finite halves and all int8 steps, at every width up to three vectors, at odd addresses.
void wide_decoders_equal_portable_ones(const RowDecoders* wide, const char* name) {
    if (wide == nullptr) {
        std::printf("no %s on this machine: only portable decoders were tested\n", name);
        return;
    }
    std::mt19937_64 random(9);
    for (std::size_t width = 1; width <= 50; ++width) {
        for (std::uint32_t first = 0; first < 0x10000; first += 1024) {
            std::vector<std::uint8_t> row(1 + std::max(2 * width, width + 4));
            for (std::size_t i = 0; i < width; ++i) {
                const auto half = static_cast<std::uint16_t>(first + random() % 1024);
                std::memcpy(row.data() + 1 + 2 * i, &half, 2);
            }
            std::vector<float> expected(width), actual(width);
            if ((first & 0x7fff) < 0x7c00) {
                portable_decoders().float16(row.data() + 1, width, expected.data());
                wide->float16(row.data() + 1, width, actual.data());
                check(std::memcmp(expected.data(), actual.data(), width * 4) == 0, "float16");
            }
            const auto scale = static_cast<float>(1 + random() % 1000) * 1e-5f;
            std::memcpy(row.data() + 1, &scale, sizeof scale);
            portable_decoders().int8(row.data() + 1, width, expected.data());
            wide->int8(row.data() + 1, width, actual.data());
            check(std::memcmp(expected.data(), actual.data(), width * 4) == 0, "int8");
        }
    }
}

void int8_stays_within_its_bound_at_every_magnitude() {
    std::mt19937_64 random(10);
    std::normal_distribution<float> normal;
    for (int exponent = -149; exponent < 125; ++exponent) {
        for (std::uint32_t width = 1; width < 40; width += 7) {
            std::vector<float> row(width), back(width);
            float largest = 0;
            for (float& value : row) {
                value = std::ldexp(normal(random), exponent);
                largest = std::max(largest, std::abs(value));
            }
            row[0] = 0;
            std::vector<std::uint8_t> bytes(row_bytes(RowType::int8, width));
            encode_row(RowType::int8, row.data(), width, bytes.data());
            portable_decoders().int8(bytes.data(), width, back.data());
            const double bound = double{largest} / 254 * (1 + 0x1p-14);
            check(back[0] == 0, "0 stays 0");
            for (std::uint32_t i = 0; i < width; ++i) {
                check(std::abs(double{back[i]} - double{row[i]}) <= std::max(bound, 0x1p-100),
                      "within half a step");
            }
        }
    }
}

void what_a_type_cannot_hold_is_refused_by_id_and_column() {
    const float big[] = {1, -65520};
    const float none[] = {NAN, 1};
    check(refusal([&] { check_row(RowType::float32, 7, none, 2); }).empty(), "float32 holds all");
    const auto message = refusal([&] { check_row(RowType::float16, 7, big, 2); });
    check(message.starts_with("row of id 7: column 1 is -65520"), "the place and the value");
    check(refusal([&] { check_row(RowType::int8, 7, big, 2); }).empty(), "int8 scales");
    for (const auto type : {RowType::float16, RowType::int8}) {
        check(!refusal([&] { check_row(type, 7, none, 2); }).empty(), "not a number");
        const float infinite[] = {-INFINITY};
        check(!refusal([&] { check_row(type, 7, infinite, 1); }).empty(), "infinite");
    }
}

void packed_rows_are_each_others_neighbours_and_nothing_more() {
    for (const std::size_t n_bytes : {1, 2, 5, 21, 34, 48, 64, 65, 68, 96, 97, 128, 200}) {
        constexpr std::uint32_t n_rows = 200'000;  // more than a slab of each
        PackedRows rows(n_bytes);
        rows.ensure(n_rows - 1);
        const auto mark = [](std::uint32_t row) {
            return static_cast<int>(row * 2654435761U >> 24);
        };
        for (std::uint32_t row = 0; row < n_rows; ++row) {
            std::memset(rows.at(row), mark(row), n_bytes);
        }
        for (std::uint32_t row = 0; row < n_rows; ++row) {
            const std::uint8_t* at = rows.at(row);
            check(at[0] == mark(row) && at[n_bytes - 1] == mark(row), "no row lies over another");
            const Lines lines = rows.lines(row);
            const auto* first = static_cast<const std::uint8_t*>(lines.first);
            check(first <= at && at + n_bytes <= first + lines.n_bytes, "all of it is fetched");
        }
        check(
            rows.capacity() >= n_rows && rows.n_bytes() * 3 <= rows.capacity() * n_bytes * 4 + 512,
            "at most a quarter unused");
    }
}

// Multiples of 0 to 127: every type holds them as they are.
void random_operations_on_the_serving_table_mirror_a_map(RowType type) {
    ServingTable table(3, 0, type);
    std::map<std::uint64_t, float> mirror;
    std::mt19937_64 random(8);
    for (int i = 0; i < 300; ++i) {
        std::vector<std::uint64_t> keys(random() % 5000);
        std::vector<float> rows(keys.size() * 3);
        for (std::size_t k = 0; k < keys.size(); ++k) {
            keys[k] = random() % 4000 - 2000;
            const auto value = static_cast<float>(random() % 128);
            std::fill_n(rows.begin() + static_cast<std::ptrdiff_t>(k * 3), 3, value);
            if (i % 3 != 2) {
                mirror[keys[k]] = value;
            }
        }
        if (i % 3 == 2) {
            std::uint64_t n = 0;
            for (const auto key : keys) {
                n += mirror.erase(key);
            }
            check(table.remove(keys) == n, "as many removed");
        } else {
            table.upsert(keys, rows.data());
        }
        check(table.size() == mirror.size(), "as many rows");
    }
    const auto keys = table.keys();
    std::vector<float> rows(keys.size() * 3);
    std::vector<std::uint8_t> found(keys.size());
    table.lookup(keys, rows.data(), found.data());
    std::size_t k = 0;
    for (const auto& [key, value] : mirror) {
        check(keys[k] == key && found[k] == 1 && rows[3 * k + 2] == value, "the same content");
        ++k;
    }
}

}  // namespace
}  // namespace freshrank

int main() {
    using namespace freshrank;
    halves_convert_exactly_and_round_to_nearest_even();
    wide_decoders_equal_portable_ones(avx2_decoders(), "AVX2 with F16C");
    wide_decoders_equal_portable_ones(avx512_decoders(), "AVX-512");
    int8_stays_within_its_bound_at_every_magnitude();
    what_a_type_cannot_hold_is_refused_by_id_and_column();
    packed_rows_are_each_others_neighbours_and_nothing_more();
    for (const auto type : {RowType::float32, RowType::float16, RowType::int8}) {
        random_operations_on_the_serving_table_mirror_a_map(type);
    }
    std::puts("serving tests passed");
    return 0;
}
