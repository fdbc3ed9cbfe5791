// Portable tier: plain loops that the compiler vectorises for the baseline (SSE2, NEON).
#include <algorithm>
#include <cmath>

#include "sage/kernels.hpp"
#include "sage/storage.hpp"

namespace sage {
namespace {

constexpr std::size_t kLanes = 8;

template <std::size_t Width>
void dot_panel_of(const float* const* rows, std::size_t n, const float* panel, std::size_t dim,
                  float* out) {
    for (std::size_t r = 0; r < n; ++r) {
        float sum[Width] = {};
        const float* row = rows[r];
        for (std::size_t d = 0; d < dim; ++d) {
            for (std::size_t lane = 0; lane < Width; ++lane) {
                sum[lane] += row[d] * panel[d * Width + lane];
            }
        }
        std::copy(sum, sum + Width, out + r * Width);
    }
}

void dot_panel(const float* const* rows, std::size_t n, const float* panel, std::size_t width,
               std::size_t dim, float* out) {
    if (width == kLanes) {
        dot_panel_of<kLanes>(rows, n, panel, dim, out);
    } else {
        dot_panel_of<2 * kLanes>(rows, n, panel, dim, out);
    }
}

float dot(const float* x, const float* y, std::size_t dim) {
    float sum[kLanes] = {};
    std::size_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
        for (std::size_t lane = 0; lane < kLanes; ++lane) sum[lane] += x[d + lane] * y[d + lane];
    }
    float total = 0.0F;
    for (; d < dim; ++d) total += x[d] * y[d];
    for (const float part : sum) total += part;
    return total;
}

void dot_rows(const float* const* rows, std::size_t n, const float* queries, std::size_t n_queries,
              std::size_t dim, float* out, std::size_t out_stride) {
    for (std::size_t r = 0; r < n; ++r) {
        for (std::size_t q = 0; q < n_queries; ++q) {
            out[q * out_stride + r] = dot(rows[r], queries + q * dim, dim);
        }
    }
}

std::size_t sift_panel(const float* dots, std::size_t n, std::size_t width, std::size_t valid,
                       const RowTerms& row, const QueryTerms& query, Hit* hits) {
    std::size_t count = 0;
    for (std::size_t r = 0; r < n; ++r) {
        for (std::size_t q = 0; q < valid; ++q) {
            const float score = dots[r * width + q] * query.scale[q] * row.mul[r] + row.bias[r];
            const float slack = query.a[q] * row.a[r] + query.b[q] * row.b[r] + row.c[r];
            if (!(score + slack < query.threshold[q])) {
                hits[count++] = {static_cast<std::uint32_t>(r), static_cast<std::uint32_t>(q),
                                 score + slack, score - slack};
            }
        }
    }
    return count;
}

std::size_t sift_rows(const float* dots, std::size_t n, std::uint32_t lane, const RowTerms& row,
                      const QueryTerms& query, Hit* hits) {
    std::size_t count = 0;
    const float scale = query.scale[lane];
    const float a = query.a[lane];
    const float b = query.b[lane];
    const float threshold = query.threshold[lane];
    for (std::size_t r = 0; r < n; ++r) {
        const float score = dots[r] * scale * row.mul[r] + row.bias[r];
        const float slack = a * row.a[r] + b * row.b[r] + row.c[r];
        if (!(score + slack < threshold)) {
            hits[count++] = {static_cast<std::uint32_t>(r), lane, score + slack, score - slack};
        }
    }
    return count;
}

template <std::size_t Width>
void code_panel_of(const std::uint8_t* const* rows, std::size_t n, const std::int8_t* panel,
                   const std::int32_t* correction, std::size_t size, float* out) {
    for (std::size_t r = 0; r < n; ++r) {
        std::int32_t sum[Width] = {};
        const std::uint8_t* row = rows[r];
        for (std::size_t d = 0; d < size; ++d) {
            const std::int8_t* at = panel + d / 4 * (4 * Width) + d % 4;
            for (std::size_t lane = 0; lane < Width; ++lane) sum[lane] += row[d] * at[4 * lane];
        }
        for (std::size_t lane = 0; lane < Width; ++lane) {
            out[r * Width + lane] = static_cast<float>(sum[lane] - correction[lane]);
        }
    }
}

void code_panel(const std::uint8_t* const* rows, std::size_t n, const std::int8_t* panel,
                const std::int32_t* correction, std::size_t width, std::size_t size, float* out) {
    if (width == kLanes) {
        code_panel_of<kLanes>(rows, n, panel, correction, size, out);
    } else {
        code_panel_of<2 * kLanes>(rows, n, panel, correction, size, out);
    }
}

void code_rows(const std::uint8_t* const* rows, std::size_t n, const std::int8_t* queries,
               const std::int32_t* correction, std::size_t n_queries, std::size_t size, float* out,
               std::size_t out_stride) {
    for (std::size_t r = 0; r < n; ++r) {
        for (std::size_t q = 0; q < n_queries; ++q) {
            const std::int8_t* query = queries + q * size;
            std::int32_t sum = 0;
            for (std::size_t d = 0; d < size; ++d) sum += rows[r][d] * query[d];
            out[q * out_stride + r] = static_cast<float>(sum - correction[q]);
        }
    }
}

DotNorm dot_norm_f64(const float* query, const float* row, std::size_t dim) {
    double dots[kSumLanes] = {};
    double norms[kSumLanes] = {};
    for (std::size_t d = 0; d < dim; d += kSumLanes) {
        const std::size_t part = std::min(kSumLanes, dim - d);
        for (std::size_t lane = 0; lane < part; ++lane) {
            const double x = row[d + lane];
            dots[lane] += static_cast<double>(query[d + lane]) * x;
            norms[lane] += x * x;
        }
    }
    return {fold_lanes(dots), fold_lanes(norms)};
}

double squared_distance_f64(const float* query, const float* row, std::size_t dim) {
    double sums[kSumLanes] = {};
    for (std::size_t d = 0; d < dim; d += kSumLanes) {
        const std::size_t part = std::min(kSumLanes, dim - d);
        for (std::size_t lane = 0; lane < part; ++lane) {
            const double gap =
                static_cast<double>(query[d + lane]) - static_cast<double>(row[d + lane]);
            sums[lane] += gap * gap;
        }
    }
    return fold_lanes(sums);
}

}  // namespace

const Kernels& scalar_kernels() {
    static constexpr Kernels table{
        Tier::scalar, kLanes,     dot_panel, dot_rows,        sift_panel,   sift_rows,
        127,          code_panel, code_rows, decode_bfloat16, dot_norm_f64, squared_distance_f64};
    return table;
}

}  // namespace sage
