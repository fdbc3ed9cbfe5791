// What a row is stored as, and what that loses.
//
// int8: x' = step * code, one step per row, code from -127 to 127; kept as code + 128, since the
// instructions for such products take one operand without sign. bfloat16: the upper half of a
// float32, rounded to the nearest. Beside each row lies a bound on |x - x'| (its gap).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace sage {

enum class Storage : std::uint32_t { float32 = 0, int8 = 1, bfloat16 = 2 };

// Which arrays a row has, and how long they are.
struct RowFormat {
    std::size_t dim;
    Storage storage = Storage::float32;
    bool keep_vectors = true;  // always, where float32 is what is stored

    bool has_vectors() const noexcept { return storage == Storage::float32 || keep_vectors; }
    bool has_codes() const noexcept { return storage != Storage::float32; }
    bool has_steps() const noexcept { return storage == Storage::int8; }
    std::size_t vector_bytes() const noexcept { return has_vectors() ? dim * sizeof(float) : 0; }
    // Bytes of a row of codes; whole registers can be read from it.
    std::size_t code_bytes() const noexcept {
        const std::size_t bytes = storage == Storage::int8       ? dim
                                  : storage == Storage::bfloat16 ? 2 * dim
                                                                 : 0;
        return (bytes + 31) / 32 * 32;
    }
};

inline constexpr std::uint8_t kZeroCode = 128;

// At least `value`, as float32.
inline float rounded_up(double value) {
    const auto near = static_cast<float>(value);
    return static_cast<double>(near) < value
               ? std::nextafter(near, std::numeric_limits<float>::infinity())
               : near;
}

// At most `value`, as float32.
inline float rounded_down(double value) { return -rounded_up(-value); }

// Codes of finite values; `out` has `size` bytes, those beyond dim become zero codes. Returns the
// step; |x - x'| goes to `gap`, rounded up.
float encode_int8(const float* x, std::size_t dim, std::uint8_t* out, std::size_t size, float* gap);
// The same for a query: signed codes up to `limit`. Padded with 0. Also returns their sum.
float encode_query(const float* x, std::size_t dim, int limit, std::int8_t* out, std::size_t size,
                   double* gap, std::int32_t* sum);
// x' = step * code, rounded to float32: the vector that is stored.
void decode_int8(const std::uint8_t* codes, float step, std::size_t dim, float* out);

void encode_bfloat16(const float* x, std::size_t dim, std::uint16_t* out, std::size_t size,
                     float* gap);
void decode_bfloat16(const std::uint16_t* codes, std::size_t dim, float* out);

}  // namespace sage
