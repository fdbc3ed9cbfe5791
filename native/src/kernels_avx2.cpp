// AVX2 + FMA tier (every x86 server CPU since Haswell and Zen).
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "sage/kernels.hpp"
#include "sage/storage.hpp"

#define SAGE_TARGET __attribute__((target("avx2,fma")))

namespace sage {
namespace {

constexpr std::size_t kLanes = 8;
constexpr std::size_t kAheadBytes = 4096;  // how far dot_rows fetches ahead
constexpr std::size_t kDepth = 512;  // 16 queries x 512 x 4 B = one L1 of panel

// Rows x (Vectors * 8) dot products; 6 x 2 accumulators leave 4 of the 16 registers.
// Fetches `next`, the rows of the following tile, meanwhile.
template <int Rows, int Vectors>
SAGE_TARGET inline __attribute__((always_inline)) void tile(const float* const* rows,
                                                            const float* const* next,
                                                            std::size_t offset,
                                                            const float* panel, std::size_t depth,
                                                            float* out, bool first) {
    __m256 sum[Rows][Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            sum[r][v] = first ? _mm256_setzero_ps() : _mm256_loadu_ps(out + (r * Vectors + v) * 8);
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
            __m256 query[Vectors];
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) {
                query[v] = _mm256_loadu_ps(panel + (d * Vectors + static_cast<std::size_t>(v)) * 8);
            }
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
                const __m256 x = _mm256_broadcast_ss(at[r] + d);
#pragma GCC unroll 4
                for (int v = 0; v < Vectors; ++v) {
                    sum[r][v] = _mm256_fmadd_ps(x, query[v], sum[r][v]);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            _mm256_storeu_ps(out + (r * Vectors + v) * 8, sum[r][v]);
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

alignas(32) constexpr std::int32_t kTailMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                     0,  0,  0,  0,  0,  0,  0,  0};

// Mask of the first `left` (0 to 8) lanes.
SAGE_TARGET inline __attribute__((always_inline)) __m256i first_lanes(std::size_t left) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kTailMasks + 8 - left));
}

SAGE_TARGET inline __attribute__((always_inline)) __m128 fold_to_128(__m256 x) {
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}

// One row x Queries. Rows are read one after the other: that is one stream, which hardware
// prefetchers follow.
template <int Queries>
SAGE_TARGET inline __attribute__((always_inline)) void one_row(const float* row, const float* ahead,
                                                               const float* queries,
                                                               std::size_t dim, float* out,
                                                               std::size_t out_stride) {
    __m256 sum[Queries][2];
#pragma GCC unroll 4
    for (int q = 0; q < Queries; ++q) sum[q][0] = sum[q][1] = _mm256_setzero_ps();
    std::size_t d = 0;
    for (; d + 16 <= dim; d += 16) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead + d), _MM_HINT_T0);
        const __m256 low = _mm256_loadu_ps(row + d);
        const __m256 high = _mm256_loadu_ps(row + d + 8);
#pragma GCC unroll 4
        for (int q = 0; q < Queries; ++q) {
            const float* query = queries + static_cast<std::size_t>(q) * dim + d;
            sum[q][0] = _mm256_fmadd_ps(low, _mm256_loadu_ps(query), sum[q][0]);
            sum[q][1] = _mm256_fmadd_ps(high, _mm256_loadu_ps(query + 8), sum[q][1]);
        }
    }
    for (; d < dim; d += 8) {
        const __m256i mask = first_lanes(std::min<std::size_t>(8, dim - d));
        const __m256 x = _mm256_maskload_ps(row + d, mask);
#pragma GCC unroll 4
        for (int q = 0; q < Queries; ++q) {
            const __m256 y =
                _mm256_maskload_ps(queries + static_cast<std::size_t>(q) * dim + d, mask);
            sum[q][0] = _mm256_fmadd_ps(x, y, sum[q][0]);
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < Queries; ++q) {
        __m128 part = fold_to_128(_mm256_add_ps(sum[q][0], sum[q][1]));
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
        for (; q + 4 <= n_queries; q += 4) {
            one_row<4>(rows[r], ahead, queries + q * dim, dim, out + q * out_stride + r, out_stride);
        }
        for (; q < n_queries; ++q) {
            one_row<1>(rows[r], ahead, queries + q * dim, dim, out + q * out_stride + r, out_stride);
        }
    }
}

SAGE_TARGET std::size_t sift_panel(const float* dots, std::size_t n, std::size_t width,
                                   std::size_t valid, const RowTerms& row, const QueryTerms& query,
                                   Hit* hits) {
    std::size_t count = 0;
    for (std::size_t q = 0; q < valid; q += 8) {
        const std::size_t left = std::min<std::size_t>(8, valid - q);
        const unsigned lanes = (1U << left) - 1U;
        const __m256 scale = _mm256_loadu_ps(query.scale + q);
        const __m256 a = _mm256_loadu_ps(query.a + q);
        const __m256 b = _mm256_loadu_ps(query.b + q);
        const __m256 threshold = _mm256_loadu_ps(query.threshold + q);
        for (std::size_t r = 0; r < n; ++r) {
            const __m256 dot = _mm256_mul_ps(_mm256_loadu_ps(dots + r * width + q), scale);
            const __m256 score =
                _mm256_fmadd_ps(dot, _mm256_set1_ps(row.mul[r]), _mm256_set1_ps(row.bias[r]));
            const __m256 slack = _mm256_fmadd_ps(
                a, _mm256_set1_ps(row.a[r]),
                _mm256_fmadd_ps(b, _mm256_set1_ps(row.b[r]), _mm256_set1_ps(row.c[r])));
            const __m256 upper = _mm256_add_ps(score, slack);
            unsigned mask = static_cast<unsigned>(_mm256_movemask_ps(
                                _mm256_cmp_ps(upper, threshold, _CMP_NLT_UQ))) &
                            lanes;
            if (mask == 0) continue;
            alignas(32) float uppers[8];
            alignas(32) float lowers[8];
            _mm256_store_ps(uppers, upper);
            _mm256_store_ps(lowers, _mm256_sub_ps(score, slack));
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
    const __m256 scale = _mm256_set1_ps(query.scale[lane]);
    const __m256 a = _mm256_set1_ps(query.a[lane]);
    const __m256 b = _mm256_set1_ps(query.b[lane]);
    const __m256 threshold = _mm256_set1_ps(query.threshold[lane]);
    for (std::size_t r = 0; r < n; r += 8) {
        const std::size_t left = std::min<std::size_t>(8, n - r);
        const __m256i valid = first_lanes(left);
        const __m256 dot = _mm256_mul_ps(_mm256_maskload_ps(dots + r, valid), scale);
        const __m256 score = _mm256_fmadd_ps(dot, _mm256_maskload_ps(row.mul + r, valid),
                                             _mm256_maskload_ps(row.bias + r, valid));
        const __m256 slack = _mm256_fmadd_ps(
            a, _mm256_maskload_ps(row.a + r, valid),
            _mm256_fmadd_ps(b, _mm256_maskload_ps(row.b + r, valid),
                            _mm256_maskload_ps(row.c + r, valid)));
        const __m256 upper = _mm256_add_ps(score, slack);
        unsigned mask = static_cast<unsigned>(_mm256_movemask_ps(
                            _mm256_cmp_ps(upper, threshold, _CMP_NLT_UQ))) &
                        ((1U << left) - 1U);
        if (mask == 0) continue;
        alignas(32) float uppers[8];
        alignas(32) float lowers[8];
        _mm256_store_ps(uppers, upper);
        _mm256_store_ps(lowers, _mm256_sub_ps(score, slack));
        for (; mask != 0; mask &= mask - 1) {
            const auto at = static_cast<std::uint32_t>(__builtin_ctz(mask));
            hits[count++] = {static_cast<std::uint32_t>(r) + at, lane, uppers[at], lowers[at]};
        }
    }
    return count;
}

// Lanes 4g .. 4g + 3 of a group of 16 dimensions, as float64; zeros beyond the end.
SAGE_TARGET inline __attribute__((always_inline)) __m256d load_f64(const float* x, std::size_t d,
                                                                   std::size_t dim) {
    if (d + 4 <= dim) return _mm256_cvtps_pd(_mm_loadu_ps(x + d));
    const std::size_t left = d < dim ? dim - d : 0;
    const __m128i mask =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(kTailMasks + 8 - left));
    return _mm256_cvtps_pd(left == 0 ? _mm_setzero_ps() : _mm_maskload_ps(x + d, mask));
}

SAGE_TARGET DotNorm dot_norm_f64(const float* query, const float* row, std::size_t dim) {
    __m256d dot[4];
    __m256d norm[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) dot[g] = norm[g] = _mm256_setzero_pd();
    for (std::size_t d = 0; d < dim; d += 16) {
#pragma GCC unroll 4
        for (std::size_t g = 0; g < 4; ++g) {
            const __m256d y = load_f64(query, d + 4 * g, dim);
            const __m256d x = load_f64(row, d + 4 * g, dim);
            // A product of two float32 is exact in float64, so fused and plain agree.
            dot[g] = _mm256_fmadd_pd(x, y, dot[g]);
            norm[g] = _mm256_fmadd_pd(x, x, norm[g]);
        }
    }
    alignas(32) double dots[16];
    alignas(32) double norms[16];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
        _mm256_store_pd(dots + 4 * g, dot[g]);
        _mm256_store_pd(norms + 4 * g, norm[g]);
    }
    return {fold_lanes(dots), fold_lanes(norms)};
}

SAGE_TARGET double squared_distance_f64(const float* query, const float* row, std::size_t dim) {
    __m256d sum[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) sum[g] = _mm256_setzero_pd();
    for (std::size_t d = 0; d < dim; d += 16) {
#pragma GCC unroll 4
        for (std::size_t g = 0; g < 4; ++g) {
            const __m256d gap =
                _mm256_sub_pd(load_f64(query, d + 4 * g, dim), load_f64(row, d + 4 * g, dim));
            // Squares of differences round: multiply, then add, as every tier does.
            sum[g] = _mm256_add_pd(sum[g], _mm256_mul_pd(gap, gap));
        }
    }
    alignas(32) double sums[16];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) _mm256_store_pd(sums + 4 * g, sum[g]);
    return fold_lanes(sums);
}

// -- codes --------------------------------------------------------------------------------

SAGE_TARGET inline __attribute__((always_inline)) __m256i load_codes(const void* at) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}

SAGE_TARGET inline __attribute__((always_inline)) std::int32_t sum_of(__m256i x) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1));
    return _mm_cvtsi128_si32(half);
}

SAGE_TARGET inline __attribute__((always_inline)) void store_floats(float* out, __m256i x) {
    _mm256_storeu_ps(out, _mm256_cvtepi32_ps(x));
}

// Pairs are added in 16 bits, which saturate: 2 x 255 x 63 stays below.
SAGE_TARGET inline __attribute__((always_inline)) __m256i dot4(__m256i sum, __m256i codes,
                                                               __m256i query) {
    const __m256i pairs = _mm256_maddubs_epi16(codes, query);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

SAGE_TARGET void decode_halves(const std::uint16_t* codes, std::size_t dim, float* out) {
    std::size_t d = 0;
    for (; d + 8 <= dim; d += 8) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + d));
        const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d), bits);
    }
    decode_bfloat16(codes + d, dim - d, out + d);
}

#define SAGE_BYTES 32
#define SAGE_REGISTER __m256i
#define SAGE_LOAD load_codes
#define SAGE_LOAD_HALF load_codes
#define SAGE_SPREAD _mm256_set1_epi32
#define SAGE_ZERO _mm256_setzero_si256
#define SAGE_SUB _mm256_sub_epi32
#define SAGE_TO_FLOAT_STORE store_floats
#define SAGE_SUM sum_of
#define SAGE_DOT4 dot4
#include "code_kernels_x86.inc"
#undef SAGE_DOT4

#undef SAGE_TARGET
#define SAGE_TARGET __attribute__((target("avx2,fma,avxvnni")))
namespace vnni {
SAGE_TARGET inline __attribute__((always_inline)) __m256i dot4(__m256i sum, __m256i codes,
                                                               __m256i query) {
    return _mm256_dpbusd_avx_epi32(sum, codes, query);
}
#define SAGE_DOT4 vnni::dot4
#include "code_kernels_x86.inc"
}  // namespace vnni

}  // namespace

const Kernels& avx2_kernels() {
    static const Kernels kernels = [] {
        Kernels own{Tier::avx2, kLanes,     dot_panel, dot_rows,      sift_panel,   sift_rows,
                    63,         code_panel, code_rows, decode_halves, dot_norm_f64,
                    squared_distance_f64};
        if (has_avx_vnni()) {
            own.query_limit = 127;
            own.code_panel = vnni::code_panel;
            own.code_rows = vnni::code_rows;
        }
        return own;
    }();
    return kernels;
}

}  // namespace sage

#endif
