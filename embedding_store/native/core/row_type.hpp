// What a serving table's row is kept as, and the way there and back; float32 outside in any case.
//
//   float32   as it is
//   float16   IEEE 754 binary16, rounded to nearest, ties to even: relative error at most 2^-11
//   from
//             2^-14 on, absolute error at most 2^-25 below
//   int8      f32 scale = max|w| / 127, then per weight the nearest multiple of it, so that 0 stays
//   0:
//             absolute error at most max|w| / 254 (and 2^-14 of that for float32's own rounding); a
//             row below 2^-100 altogether reads 0
//
// No zero point beside int8's scale: on normal weights it narrows the step by a seventh at 16
// columns and by a tenth at 64, its four bytes are a fifth of a row at 16, and 0 would no longer be
// exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace freshrank {

enum class RowType : std::uint32_t { float32 = 0, float16 = 1, int8 = 2 };

RowType row_type_named(std::string_view name);
const char* name_of(RowType type);
std::size_t row_bytes(RowType type, std::uint32_t width);

// A row whose weights are all acceptable to `type`; refuses others by id and column.
void check_row(RowType type, std::uint64_t id, const float* row, std::uint32_t width);
void encode_row(RowType type, const float* row, std::uint32_t width, std::uint8_t* to);

struct RowDecoders {
    using Decode = void (*)(const std::uint8_t* row, std::size_t width, float* to);
    Decode float16;
    Decode int8;
};
const RowDecoders& portable_decoders();
const RowDecoders* avx2_decoders();    // null where the compiler or the processor lacks them,
const RowDecoders* avx512_decoders();  // F16C included
const RowDecoders& best_decoders();

std::uint16_t half_of(float value);  // to nearest, ties to even; any value
float float_of(std::uint16_t half);  // of finite halves

}  // namespace freshrank
