#include "sage/storage.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace sage {
namespace {

// The sums below are of at most 8192 squares, each rounded: this covers them.
constexpr double kSumMargin = 1.0 + 0x1p-36;

float greatest(const float* x, std::size_t dim) {
    float most = 0.0F;
    for (std::size_t d = 0; d < dim; ++d) most = std::max(most, std::fabs(x[d]));
    return most;
}

// The step of codes up to `limit`; 0 where it would not be a normal number.
float step_of(const float* x, std::size_t dim, float limit) {
    const float step = greatest(x, dim) / limit;
    return step >= std::numeric_limits<float>::min() ? step : 0.0F;
}

int code_of(float x, float inverse, float limit) {
    const float scaled = std::clamp(x * inverse, -limit, limit);
    return static_cast<int>(scaled + (scaled < 0.0F ? -0.5F : 0.5F));
}

// What a code stands for. A step that was rounded up could lead beyond the greatest float32.
float value_of(float step, int code) {
    constexpr float kMost = std::numeric_limits<float>::max();
    return std::clamp(step * static_cast<float>(code), -kMost, kMost);
}

}  // namespace

float encode_int8(const float* x, std::size_t dim, std::uint8_t* out, std::size_t size,
                  float* gap) {
    const float step = step_of(x, dim, 127.0F);
    const float inverse = step > 0.0F ? 1.0F / step : 0.0F;
    double lost = 0.0;
    for (std::size_t d = 0; d < dim; ++d) {
        const int code = code_of(x[d], inverse, 127.0F);
        out[d] = static_cast<std::uint8_t>(code + kZeroCode);
        const double missed =
            static_cast<double>(x[d]) - static_cast<double>(value_of(step, code));
        lost += missed * missed;
    }
    std::fill(out + dim, out + size, kZeroCode);
    *gap = rounded_up(std::sqrt(lost) * kSumMargin);
    return step;
}

float encode_query(const float* x, std::size_t dim, int limit, std::int8_t* out, std::size_t size,
                   double* gap, std::int32_t* sum) {
    const auto most = static_cast<float>(limit);
    const float step = step_of(x, dim, most);
    const float inverse = step > 0.0F ? 1.0F / step : 0.0F;
    double lost = 0.0;
    *sum = 0;
    for (std::size_t d = 0; d < dim; ++d) {
        const int code = code_of(x[d], inverse, most);
        out[d] = static_cast<std::int8_t>(code);
        *sum += code;
        const double missed = static_cast<double>(x[d]) - static_cast<double>(step) * code;
        lost += missed * missed;
    }
    std::fill(out + dim, out + size, std::int8_t{0});
    *gap = std::sqrt(lost) * kSumMargin;
    return step;
}

void decode_int8(const std::uint8_t* codes, float step, std::size_t dim, float* out) {
    for (std::size_t d = 0; d < dim; ++d) {
        out[d] = value_of(step, static_cast<int>(codes[d]) - kZeroCode);
    }
}

void encode_bfloat16(const float* x, std::size_t dim, std::uint16_t* out, std::size_t size,
                     float* gap) {
    double lost = 0.0;
    for (std::size_t d = 0; d < dim; ++d) {
        const auto bits = std::bit_cast<std::uint32_t>(x[d]);
        // To nearest, ties to even; the greatest numbers must not become infinite.
        std::uint32_t half = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
        if ((half & 0x7F80U) == 0x7F80U) half = bits >> 16;
        out[d] = static_cast<std::uint16_t>(half);
        const double missed = static_cast<double>(x[d]) -
                              static_cast<double>(std::bit_cast<float>(half << 16));
        lost += missed * missed;
    }
    std::fill(out + dim, out + size / sizeof(std::uint16_t), std::uint16_t{0});
    *gap = rounded_up(std::sqrt(lost) * kSumMargin);
}

void decode_bfloat16(const std::uint16_t* codes, std::size_t dim, float* out) {
    for (std::size_t d = 0; d < dim; ++d) {
        out[d] = std::bit_cast<float>(static_cast<std::uint32_t>(codes[d]) << 16);
    }
}

}  // namespace sage
