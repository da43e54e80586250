#include "row_type.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "errors.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace freshrank {

namespace {

constexpr const char* type_names[] = {"float32", "float16", "int8"};

constexpr float half_limit = 65520.0f;  // from here on the nearest half is infinite
constexpr float int8_steps = 127.0f;    // symmetric: -128 is not used
constexpr float int8_limit = 3e38f;     // near float32's end 127 * scale rounds to infinity

}  // namespace

// Without branches, so that a row's loop becomes vector code.
std::uint16_t half_of(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & 0x7fffffffU;
    // Exponents differ by 112; 13 bits go, rounded by adding almost half, or half if odd.
    const std::uint32_t normal = (magnitude - (112U << 23) + 0xfffU + (magnitude >> 13 & 1U)) >> 13;
    // Below 2^-14 a half has the precision of 0.5f.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    const std::uint32_t small = std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U;
    const std::uint32_t finite = magnitude < 0x38800000U ? small : normal;
    const std::uint32_t beyond = magnitude > 0x7f800000U ? 0x7e00U : 0x7c00U;  // NaN or infinity
    const std::uint32_t half =
        magnitude < std::bit_cast<std::uint32_t>(half_limit) ? finite : beyond;
    return static_cast<std::uint16_t>(half | (bits >> 16 & 0x8000U));
}

float float_of(std::uint16_t half) {
    const std::uint32_t magnitude = half & 0x7fffU;
    const auto sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
    const float small = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f;
    const std::uint32_t bits =
        magnitude < 0x400U ? std::bit_cast<std::uint32_t>(small) : (magnitude << 13) + (112U << 23);
    return std::bit_cast<float>(bits | sign);
}

namespace {

template <class T>
T load(const std::uint8_t* from, std::size_t i = 0) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    return value;
}

void float16_portable(const std::uint8_t* row, std::size_t width, float* to) {
    for (std::size_t i = 0; i < width; ++i) {
        to[i] = float_of(load<std::uint16_t>(row, i));
    }
}

void int8_portable(const std::uint8_t* row, std::size_t width, float* to) {
    const float scale = load<float>(row);
    const std::uint8_t* steps = row + sizeof(float);
    for (std::size_t i = 0; i < width; ++i) {
        to[i] = static_cast<float>(load<std::int8_t>(steps, i)) * scale;
    }
}

#if defined(__x86_64__) && defined(__GNUC__)

// Whole vectors only: the last one overlaps the one before it, so that nothing outside the row is
// read, which could lie in a line nobody fetched, and nothing outside `to` is written.
[[gnu::target("avx2,f16c")]] void float16_avx2(const std::uint8_t* row, std::size_t width,
                                               float* to) {
    if (width < 8) {
        return float16_portable(row, width, to);
    }
    for (std::size_t next = 0; next < width; next += 8) {
        const std::size_t i = std::min(next, width - 8);
        const auto* from = reinterpret_cast<const __m128i*>(row + 2 * i);
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(from)));
    }
}

[[gnu::target("avx2,f16c")]] void int8_avx2(const std::uint8_t* row, std::size_t width, float* to) {
    if (width < 8) {
        return int8_portable(row, width, to);
    }
    const __m256 scale = _mm256_set1_ps(load<float>(row));
    const std::uint8_t* steps = row + sizeof(float);
    for (std::size_t next = 0; next < width; next += 8) {
        const std::size_t i = std::min(next, width - 8);
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(steps + i));
        const __m256 floats = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
        _mm256_storeu_ps(to + i, _mm256_mul_ps(floats, scale));
    }
}

// The unmasked conversions would do as well, but GCC 12 warns of an operand they leave undefined.
constexpr __mmask16 all_lanes = 0xffff;

[[gnu::target("avx512f,avx2,f16c")]] void float16_avx512(const std::uint8_t* row, std::size_t width,
                                                         float* to) {
    if (width < 16) {
        return float16_avx2(row, width, to);
    }
    for (std::size_t next = 0; next < width; next += 16) {
        const std::size_t i = std::min(next, width - 16);
        const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 2 * i));
        _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(all_lanes, halves));
    }
}

[[gnu::target("avx512f,avx2,f16c")]] void int8_avx512(const std::uint8_t* row, std::size_t width,
                                                      float* to) {
    if (width < 16) {
        return int8_avx2(row, width, to);
    }
    const __m512 scale = _mm512_set1_ps(load<float>(row));
    const std::uint8_t* steps = row + sizeof(float);
    for (std::size_t next = 0; next < width; next += 16) {
        const std::size_t i = std::min(next, width - 16);
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(steps + i));
        const __m512i integers = _mm512_maskz_cvtepi8_epi32(all_lanes, bytes);
        const __m512 floats = _mm512_maskz_cvtepi32_ps(all_lanes, integers);
        _mm512_storeu_ps(to + i, _mm512_mul_ps(floats, scale));
    }
}

#endif

void encode_int8(const float* row, std::uint32_t width, std::uint8_t* to) {
    float largest = 0;
    for (std::uint32_t i = 0; i < width; ++i) {
        largest = std::max(largest, std::abs(row[i]));
    }
    const bool is_nothing = largest < 0x1p-100f;  // whose reciprocal would come near infinity
    const float scale = is_nothing ? 0 : largest / int8_steps;
    const float per_step = is_nothing ? 0 : int8_steps / largest;
    // Added and taken away again it leaves the nearest integer, ties to even, in vector code too.
    constexpr float rounder = 0x1.8p23f;
    std::memcpy(to, &scale, sizeof scale);
    to += sizeof scale;
    for (std::uint32_t i = 0; i < width; ++i) {
        const float steps = row[i] * per_step + rounder - rounder;
        to[i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(steps));
    }
}

}  // namespace

RowType row_type_named(std::string_view name) {
    for (std::uint32_t i = 0; i < std::size(type_names); ++i) {
        if (type_names[i] == name) {
            return static_cast<RowType>(i);
        }
    }
    throw StoreError("dtype is '" + std::string(name) + "'; it must be float32, float16 or int8");
}

const char* name_of(RowType type) {
    return type_names[static_cast<std::uint32_t>(type)];
}

std::size_t row_bytes(RowType type, std::uint32_t width) {
    switch (type) {
        case RowType::float32:
            return std::size_t{width} * sizeof(float);
        case RowType::float16:
            return std::size_t{width} * sizeof(std::uint16_t);
        case RowType::int8:
            return sizeof(float) + width;
    }
    return 0;
}

void check_row(RowType type, std::uint64_t id, const float* row, std::uint32_t width) {
    if (type == RowType::float32) {
        return;
    }
    const auto fits = [&](float value) {
        return std::abs(value) < (type == RowType::float16 ? half_limit : int8_limit);
    };
    bool is_good = true;
    for (std::uint32_t i = 0; i < width; ++i) {
        is_good &= fits(row[i]);
    }
    if (is_good) {
        return;
    }
    const auto column = std::find_if_not(row, row + width, fits) - row;
    throw StoreError("row of id " + std::to_string(id) + ": column " + std::to_string(column) +
                     " is " + std::to_string(row[column]) + ", which " + name_of(type) +
                     " rows cannot hold (" +
                     (type == RowType::float16 ? "at most 65504" : "below 3e38") +
                     "); nothing was changed; use a table with dtype float32");
}

void encode_row(RowType type, const float* row, std::uint32_t width, std::uint8_t* to) {
    switch (type) {
        case RowType::float32:
            std::memcpy(to, row, width * sizeof(float));
            return;
        case RowType::float16:
            for (std::uint32_t i = 0; i < width; ++i) {
                const std::uint16_t half = half_of(row[i]);
                std::memcpy(to + i * sizeof half, &half, sizeof half);
            }
            return;
        case RowType::int8:
            encode_int8(row, width, to);
            return;
    }
}

const RowDecoders& portable_decoders() {
    static constexpr RowDecoders decoders{float16_portable, int8_portable};
    return decoders;
}

const RowDecoders* avx2_decoders() {
#if defined(__x86_64__) && defined(__GNUC__)
    static constexpr RowDecoders decoders{float16_avx2, int8_avx2};
    // Asked of the processor itself: Clang's __builtin_cpu_supports does not know the name f16c.
    unsigned a = 0, b = 0, features = 0, d = 0;
    __get_cpuid(1, &a, &b, &features, &d);
    if (__builtin_cpu_supports("avx2") && (features & bit_F16C) != 0) {
        return &decoders;
    }
#endif
    return nullptr;
}

const RowDecoders* avx512_decoders() {
#if defined(__x86_64__) && defined(__GNUC__)
    static constexpr RowDecoders decoders{float16_avx512, int8_avx512};
    if (__builtin_cpu_supports("avx512f") && avx2_decoders() != nullptr) {
        return &decoders;
    }
#endif
    return nullptr;
}

const RowDecoders& best_decoders() {
    static const RowDecoders& best = avx512_decoders() != nullptr ? *avx512_decoders()
                                     : avx2_decoders() != nullptr ? *avx2_decoders()
                                                                  : portable_decoders();
    return best;
}

}  // namespace freshrank
