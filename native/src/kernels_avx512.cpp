// AVX-512 tier (F, DQ, BW, VL: every CPU since Skylake-SP and Zen 4).
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "sage/kernels.hpp"
#include "sage/storage.hpp"

#define SAGE_TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")))

namespace sage {
namespace {

constexpr std::size_t kLanes = 16;
constexpr std::size_t kAheadBytes = 4096;  // how far dot_rows fetches ahead
// Dimensions per pass: the slice of a two-vector panel (32 queries x 256 x 4 B) stays in L1/L2.
constexpr std::size_t kDepth = 256;

// Rows x (Vectors * 16) dot products over dimensions [0, depth), added to `out` unless `first`.
// Fetches `next`, the rows of the following tile, meanwhile: hardware prefetchers lose so many
// streams at once.
template <int Rows, int Vectors>
SAGE_TARGET inline __attribute__((always_inline)) void tile(const float* const* rows,
                                                            const float* const* next,
                                                            std::size_t offset,
                                                            const float* panel, std::size_t depth,
                                                            float* out, bool first) {
    __m512 sum[Rows][Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            sum[r][v] = first ? _mm512_setzero_ps()
                              : _mm512_loadu_ps(out + (r * Vectors + v) * 16);
        }
    }
    const float* at[Rows];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) at[r] = rows[r] + offset;
    for (std::size_t line = 0; line < depth; line += 16) {
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            _mm_prefetch(reinterpret_cast<const char*>(next[r] + offset + line), _MM_HINT_T0);
        }
        const std::size_t stop = std::min(line + 16, depth);
        for (std::size_t d = line; d < stop; ++d) {
            __m512 query[Vectors];
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) {
                query[v] =
                    _mm512_loadu_ps(panel + (d * Vectors + static_cast<std::size_t>(v)) * 16);
            }
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
                const __m512 x = _mm512_set1_ps(at[r][d]);
#pragma GCC unroll 4
                for (int v = 0; v < Vectors; ++v) {
                    sum[r][v] = _mm512_fmadd_ps(x, query[v], sum[r][v]);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            _mm512_storeu_ps(out + (r * Vectors + v) * 16, sum[r][v]);
        }
    }
}

template <int Rows, int Vectors>
SAGE_TARGET void panel_pass(const float* const* rows, std::size_t n, std::size_t offset,
                            const float* panel, std::size_t depth, float* out, bool first) {
    constexpr std::size_t kWidth = Vectors * kLanes;
    std::size_t r = 0;
    for (; r + Rows <= n; r += Rows) {
        const float* const* next = rows + (r + 2 * Rows <= n ? r + Rows : r);
        tile<Rows, Vectors>(rows + r, next, offset, panel, depth, out + r * kWidth, first);
    }
    for (; r < n; ++r) {
        tile<1, Vectors>(rows + r, rows + r, offset, panel, depth, out + r * kWidth, first);
    }
}

SAGE_TARGET void dot_panel(const float* const* rows, std::size_t n, const float* panel,
                           std::size_t width, std::size_t dim, float* out) {
    for (std::size_t d = 0; d < dim; d += kDepth) {
        const std::size_t depth = std::min(kDepth, dim - d);
        if (width == kLanes) {
            panel_pass<8, 1>(rows, n, d, panel + d * width, depth, out, d == 0);
        } else {
            panel_pass<6, 2>(rows, n, d, panel + d * width, depth, out, d == 0);
        }
    }
}

SAGE_TARGET inline __attribute__((always_inline)) __m128 fold_to_128(__m512 x) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// One row x Queries. Rows are read one after the other: that is one stream, which hardware
// prefetchers follow (2.3 times the bandwidth of four rows side by side on Zen 4).
template <int Queries>
SAGE_TARGET inline __attribute__((always_inline)) void one_row(const float* row, const float* ahead,
                                                               const float* queries,
                                                               std::size_t dim, float* out,
                                                               std::size_t out_stride) {
    constexpr int kParts = Queries == 1 ? 2 : Queries == 2 ? 2 : 1;  // independent sums per query
    constexpr std::size_t kStep = 16 * kParts;
    __m512 sum[Queries][kParts];
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) sum[q][p] = _mm512_setzero_ps();
    }
    std::size_t d = 0;
    for (; d + kStep <= dim; d += kStep) {
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
            const std::size_t at = d + 16 * static_cast<std::size_t>(p);
            _mm_prefetch(reinterpret_cast<const char*>(ahead + at), _MM_HINT_T0);
            const __m512 x = _mm512_loadu_ps(row + at);
#pragma GCC unroll 8
            for (int q = 0; q < Queries; ++q) {
                const __m512 y = _mm512_loadu_ps(queries + static_cast<std::size_t>(q) * dim + at);
                sum[q][p] = _mm512_fmadd_ps(x, y, sum[q][p]);
            }
        }
    }
    for (; d < dim; d += 16) {
        const auto mask = static_cast<__mmask16>((1U << std::min<std::size_t>(16, dim - d)) - 1U);
        const __m512 x = _mm512_maskz_loadu_ps(mask, row + d);
#pragma GCC unroll 8
        for (int q = 0; q < Queries; ++q) {
            const __m512 y =
                _mm512_maskz_loadu_ps(mask, queries + static_cast<std::size_t>(q) * dim + d);
            sum[q][0] = _mm512_fmadd_ps(x, y, sum[q][0]);
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) {
        __m512 total = sum[q][0];
        if constexpr (kParts == 2) total = _mm512_add_ps(total, sum[q][1]);
        __m128 part = fold_to_128(total);
        part = _mm_hadd_ps(part, part);
        part = _mm_hadd_ps(part, part);
        out[static_cast<std::size_t>(q) * out_stride] = _mm_cvtss_f32(part);
    }
}

SAGE_TARGET void dot_rows(const float* const* rows, std::size_t n, const float* queries,
                          std::size_t n_queries, std::size_t dim, float* out,
                          std::size_t out_stride) {
    const std::size_t lead = kAheadBytes / (dim * sizeof(float)) + 1;
    for (std::size_t r = 0; r < n; ++r) {
        const float* ahead = rows[std::min(r + lead, n - 1)];
        std::size_t q = 0;
        for (; q + 8 <= n_queries; q += 8) {
            one_row<8>(rows[r], ahead, queries + q * dim, dim, out + q * out_stride + r, out_stride);
        }
        if (q + 4 <= n_queries) {
            one_row<4>(rows[r], ahead, queries + q * dim, dim, out + q * out_stride + r, out_stride);
            q += 4;
        }
        if (q + 2 <= n_queries) {
            one_row<2>(rows[r], ahead, queries + q * dim, dim, out + q * out_stride + r, out_stride);
            q += 2;
        }
        if (q < n_queries) {
            one_row<1>(rows[r], ahead, queries + q * dim, dim, out + q * out_stride + r, out_stride);
        }
    }
}

SAGE_TARGET std::size_t sift_panel(const float* dots, std::size_t n, std::size_t width,
                                   std::size_t valid, const RowTerms& row, const QueryTerms& query,
                                   Hit* hits) {
    std::size_t count = 0;
    for (std::size_t q = 0; q < valid; q += 16) {
        const std::size_t left = std::min<std::size_t>(16, valid - q);
        const auto lanes = static_cast<__mmask16>((1U << left) - 1U);
        const __m512 scale = _mm512_loadu_ps(query.scale + q);
        const __m512 a = _mm512_loadu_ps(query.a + q);
        const __m512 b = _mm512_loadu_ps(query.b + q);
        const __m512 threshold = _mm512_loadu_ps(query.threshold + q);
        for (std::size_t r = 0; r < n; ++r) {
            const __m512 dot = _mm512_mul_ps(_mm512_loadu_ps(dots + r * width + q), scale);
            const __m512 score =
                _mm512_fmadd_ps(dot, _mm512_set1_ps(row.mul[r]), _mm512_set1_ps(row.bias[r]));
            const __m512 slack = _mm512_fmadd_ps(
                a, _mm512_set1_ps(row.a[r]),
                _mm512_fmadd_ps(b, _mm512_set1_ps(row.b[r]), _mm512_set1_ps(row.c[r])));
            const __m512 upper = _mm512_add_ps(score, slack);
            unsigned mask = _mm512_mask_cmp_ps_mask(lanes, upper, threshold, _CMP_NLT_UQ);
            if (mask == 0) continue;
            alignas(64) float uppers[16];
            alignas(64) float lowers[16];
            _mm512_store_ps(uppers, upper);
            _mm512_store_ps(lowers, _mm512_sub_ps(score, slack));
            for (; mask != 0; mask &= mask - 1) {
                const auto lane = static_cast<std::uint32_t>(__builtin_ctz(mask));
                hits[count++] = {static_cast<std::uint32_t>(r),
                                 static_cast<std::uint32_t>(q) + lane, uppers[lane], lowers[lane]};
            }
        }
    }
    return count;
}

SAGE_TARGET std::size_t sift_rows(const float* dots, std::size_t n, std::uint32_t lane,
                                  const RowTerms& row, const QueryTerms& query, Hit* hits) {
    std::size_t count = 0;
    const __m512 scale = _mm512_set1_ps(query.scale[lane]);
    const __m512 a = _mm512_set1_ps(query.a[lane]);
    const __m512 b = _mm512_set1_ps(query.b[lane]);
    const __m512 threshold = _mm512_set1_ps(query.threshold[lane]);
    for (std::size_t r = 0; r < n; r += 16) {
        const std::size_t left = std::min<std::size_t>(16, n - r);
        const auto valid = static_cast<__mmask16>((1U << left) - 1U);
        const __m512 dot = _mm512_mul_ps(_mm512_maskz_loadu_ps(valid, dots + r), scale);
        const __m512 score = _mm512_fmadd_ps(dot, _mm512_maskz_loadu_ps(valid, row.mul + r),
                                             _mm512_maskz_loadu_ps(valid, row.bias + r));
        const __m512 slack =
            _mm512_fmadd_ps(a, _mm512_maskz_loadu_ps(valid, row.a + r),
                            _mm512_fmadd_ps(b, _mm512_maskz_loadu_ps(valid, row.b + r),
                                            _mm512_maskz_loadu_ps(valid, row.c + r)));
        const __m512 upper = _mm512_add_ps(score, slack);
        unsigned mask = _mm512_mask_cmp_ps_mask(valid, upper, threshold, _CMP_NLT_UQ);
        if (mask == 0) continue;
        alignas(64) float uppers[16];
        alignas(64) float lowers[16];
        _mm512_store_ps(uppers, upper);
        _mm512_store_ps(lowers, _mm512_sub_ps(score, slack));
        for (; mask != 0; mask &= mask - 1) {
            const auto at = static_cast<std::uint32_t>(__builtin_ctz(mask));
            hits[count++] = {static_cast<std::uint32_t>(r) + at, lane, uppers[at], lowers[at]};
        }
    }
    return count;
}

SAGE_TARGET DotNorm dot_norm_f64(const float* query, const float* row, std::size_t dim) {
    __m512d dot_low = _mm512_setzero_pd();
    __m512d dot_high = _mm512_setzero_pd();
    __m512d norm_low = _mm512_setzero_pd();
    __m512d norm_high = _mm512_setzero_pd();
    for (std::size_t d = 0; d < dim; d += 16) {
        const auto valid =
            static_cast<__mmask16>((1U << std::min<std::size_t>(16, dim - d)) - 1U);
        const __m512 y = _mm512_maskz_loadu_ps(valid, query + d);
        const __m512 x = _mm512_maskz_loadu_ps(valid, row + d);
        const __m512d x_low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
        const __m512d x_high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
        const __m512d y_low = _mm512_cvtps_pd(_mm512_castps512_ps256(y));
        const __m512d y_high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(y, 1));
        // A product of two float32 is exact in float64, so fused and plain agree.
        dot_low = _mm512_fmadd_pd(x_low, y_low, dot_low);
        dot_high = _mm512_fmadd_pd(x_high, y_high, dot_high);
        norm_low = _mm512_fmadd_pd(x_low, x_low, norm_low);
        norm_high = _mm512_fmadd_pd(x_high, x_high, norm_high);
    }
    alignas(64) double dots[16];
    alignas(64) double norms[16];
    _mm512_store_pd(dots, dot_low);
    _mm512_store_pd(dots + 8, dot_high);
    _mm512_store_pd(norms, norm_low);
    _mm512_store_pd(norms + 8, norm_high);
    return {fold_lanes(dots), fold_lanes(norms)};
}

SAGE_TARGET double squared_distance_f64(const float* query, const float* row, std::size_t dim) {
    __m512d low = _mm512_setzero_pd();
    __m512d high = _mm512_setzero_pd();
    for (std::size_t d = 0; d < dim; d += 16) {
        const auto valid =
            static_cast<__mmask16>((1U << std::min<std::size_t>(16, dim - d)) - 1U);
        const __m512 y = _mm512_maskz_loadu_ps(valid, query + d);
        const __m512 x = _mm512_maskz_loadu_ps(valid, row + d);
        const __m512d gap_low = _mm512_sub_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(y)),
                                              _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
        const __m512d gap_high = _mm512_sub_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(y, 1)),
                                               _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
        // Squares of differences round: multiply, then add, as every tier does.
        low = _mm512_add_pd(low, _mm512_mul_pd(gap_low, gap_low));
        high = _mm512_add_pd(high, _mm512_mul_pd(gap_high, gap_high));
    }
    alignas(64) double sums[16];
    _mm512_store_pd(sums, low);
    _mm512_store_pd(sums + 8, high);
    return fold_lanes(sums);
}

// -- codes --------------------------------------------------------------------------------

SAGE_TARGET inline __attribute__((always_inline)) __m512i load_codes(const void* at) {
    return _mm512_loadu_si512(at);
}

SAGE_TARGET inline __attribute__((always_inline)) __m512i load_half(const void* at) {
    return _mm512_zextsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(at)));
}

SAGE_TARGET inline __attribute__((always_inline)) void store_floats(float* out, __m512i x) {
    _mm512_storeu_ps(out, _mm512_cvtepi32_ps(x));
}

// Pairs are added in 16 bits, which saturate: 2 x 255 x 63 stays below.
SAGE_TARGET inline __attribute__((always_inline)) __m512i dot4(__m512i sum, __m512i codes,
                                                               __m512i query) {
    const __m512i pairs = _mm512_maddubs_epi16(codes, query);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

SAGE_TARGET void decode_halves(const std::uint16_t* codes, std::size_t dim, float* out) {
    std::size_t d = 0;
    for (; d + 16 <= dim; d += 16) {
        const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + d));
        _mm512_storeu_si512(out + d, _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }
    decode_bfloat16(codes + d, dim - d, out + d);
}

#define SAGE_BYTES 64
#define SAGE_REGISTER __m512i
#define SAGE_LOAD load_codes
#define SAGE_LOAD_HALF load_half
#define SAGE_SPREAD _mm512_set1_epi32
#define SAGE_ZERO _mm512_setzero_si512
#define SAGE_SUB _mm512_sub_epi32
#define SAGE_TO_FLOAT_STORE store_floats
#define SAGE_SUM _mm512_reduce_add_epi32
#define SAGE_DOT4 dot4
#include "code_kernels_x86.inc"
#undef SAGE_DOT4

#undef SAGE_TARGET
#define SAGE_TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,avx512vnni")))
namespace vnni {
SAGE_TARGET inline __attribute__((always_inline)) __m512i dot4(__m512i sum, __m512i codes,
                                                               __m512i query) {
    return _mm512_dpbusd_epi32(sum, codes, query);
}
#define SAGE_DOT4 vnni::dot4
#include "code_kernels_x86.inc"
}  // namespace vnni

}  // namespace

void avx512_vnni_code_panel(const std::uint8_t* const* rows, std::size_t n,
                            const std::int8_t* panel, const std::int32_t* correction,
                            std::size_t width, std::size_t size, float* out) {
    vnni::code_panel(rows, n, panel, correction, width, size, out);
}

const Kernels& avx512_kernels() {
    static const Kernels kernels = [] {
        Kernels own{Tier::avx512, kLanes,     dot_panel, dot_rows,      sift_panel,   sift_rows,
                    63,         code_panel, code_rows, decode_halves, dot_norm_f64,
                    squared_distance_f64};
        if (has_avx512_vnni()) {
            own.query_limit = 127;
            own.code_panel = vnni::code_panel;
            own.code_rows = vnni::code_rows;
            if (has_amx()) own.code_panel = amx_code_panel();
        }
        return own;
    }();
    return kernels;
}

}  // namespace sage

#endif
