// The inner loops, one table of functions per instruction set tier.
//
// The scan computes float32 scores of rows x queries together with a rigorous error bound, and
// reports the pairs whose upper bound reaches the query's threshold. Survivors are scored again
// in float64 by `dot_norm_f64` / `squared_distance_f64`, which sum in one fixed order on every
// tier: results are the same bit for bit whichever tier runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sage/isa.hpp"

namespace sage {

// A pair whose upper bound reached the threshold. `row` counts inside the scanned chunk.
struct Hit {
    std::uint32_t row;
    std::uint32_t lane;
    float upper;
    float lower;
};

// Per row of a chunk: score = (dot * scale_q) * mul + bias,
// error bound = a_q * a + b_q * b + c. See docs/decisions/0002 for the derivation.
struct RowTerms {
    const float* mul;
    const float* bias;
    const float* a;
    const float* b;
    const float* c;
};

// Per query (lane) of a panel; arrays are padded to the panel's width.
struct QueryTerms {
    const float* scale;
    const float* a;
    const float* b;
    const float* threshold;
};

struct DotNorm {
    double dot;
    double norm2;
};

using CodePanel = void (*)(const std::uint8_t* const* rows, std::size_t n,
                           const std::int8_t* panel, const std::int32_t* correction,
                           std::size_t width, std::size_t size, float* out);

struct Kernels {
    Tier tier;
    // A panel holds `lanes` or `2 * lanes` queries, transposed: panel[d * width + lane].
    std::size_t lanes;

    // out[r * width + lane] = dot(rows[r], query lane).
    void (*dot_panel)(const float* const* rows, std::size_t n, const float* panel,
                      std::size_t width, std::size_t dim, float* out);
    // out[q * out_stride + r] = dot(rows[r], queries[q]); for few queries, queries row-major.
    void (*dot_rows)(const float* const* rows, std::size_t n, const float* queries,
                     std::size_t n_queries, std::size_t dim, float* out, std::size_t out_stride);
    // Writes at most n * valid hits; a score that is not a number counts as a hit.
    std::size_t (*sift_panel)(const float* dots, std::size_t n, std::size_t width,
                              std::size_t valid, const RowTerms& row, const QueryTerms& query,
                              Hit* hits);
    // The same for one query whose dots lie side by side; writes at most n hits.
    std::size_t (*sift_rows)(const float* dots, std::size_t n, std::uint32_t lane,
                             const RowTerms& row, const QueryTerms& query, Hit* hits);

    // The same over codes (storage.hpp): rows hold `size` unsigned bytes, queries signed ones up
    // to `query_limit`, in groups of four: panel[(d / 4) * 4 * width + 4 * lane + d % 4]. From
    // each sum `correction`, 128 times the sum of the query's codes, is taken. Sums are exact.
    int query_limit;
    CodePanel code_panel;
    void (*code_rows)(const std::uint8_t* const* rows, std::size_t n, const std::int8_t* queries,
                      const std::int32_t* correction, std::size_t n_queries, std::size_t size,
                      float* out, std::size_t out_stride);
    void (*decode_bfloat16)(const std::uint16_t* codes, std::size_t dim, float* out);

    DotNorm (*dot_norm_f64)(const float* query, const float* row, std::size_t dim);
    double (*squared_distance_f64)(const float* query, const float* row, std::size_t dim);
};

// The table of a tier that available_tiers() lists.
const Kernels& kernels_of(Tier tier);

const Kernels& scalar_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
// Parts of the avx512 tier where the CPU has more.
void avx512_vnni_code_panel(const std::uint8_t* const* rows, std::size_t n,
                            const std::int8_t* panel, const std::int32_t* correction,
                            std::size_t width, std::size_t size, float* out);
CodePanel amx_code_panel();
#endif

inline constexpr std::size_t kMaxCodes = 8192;  // bytes of a row of int8 codes

// The float64 sums run in this many independent lanes, folded by halves at the end.
inline constexpr std::size_t kSumLanes = 16;

inline double fold_lanes(const double* lane) {
    double half[kSumLanes / 2];
    for (std::size_t i = 0; i < 8; ++i) half[i] = lane[i] + lane[i + 8];
    for (std::size_t i = 0; i < 4; ++i) half[i] += half[i + 4];
    return (half[0] + half[2]) + (half[1] + half[3]);
}

}  // namespace sage
