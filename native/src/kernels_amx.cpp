// Products of codes in AMX tiles: 16 rows x 64 codes by 64 codes x 16 queries in one instruction.
//
// The layouts are those of the other tiers: rows as they lie, queries in panels of groups of four.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "sage/kernels.hpp"

#define SAGE_TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,amx-tile,amx-int8")))

namespace sage {
namespace {

constexpr std::size_t kTile = 16;       // rows, and queries
constexpr std::size_t kTileCodes = 64;  // of a row

// All eight tiles have 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};

    TileConfig() {
        for (int i = 0; i < 8; ++i) {
            row_bytes[i] = kTileCodes;
            rows[i] = kTile;
        }
    }
};
static_assert(sizeof(TileConfig) == 64);

// Sixteen rows as the tile instruction takes them: where they lie, if they lie side by side, else
// copied to `room`.
struct Rows {
    const std::uint8_t* at;
    std::size_t stride;

    Rows(const std::uint8_t* const* rows, std::size_t size, std::uint8_t* room)
        : at(rows[0]), stride(size) {
        bool together = true;
        for (std::size_t r = 1; r < kTile; ++r) together &= rows[r] == rows[0] + r * size;
        if (together) return;
        for (std::size_t r = 0; r < kTile; ++r) std::memcpy(room + r * size, rows[r], size);
        at = room;
    }
};

SAGE_TARGET inline __attribute__((always_inline)) void store(const std::int32_t* sums,
                                                             const std::int32_t* correction,
                                                             std::size_t width, float* out) {
    const __m512i own = _mm512_loadu_si512(correction);
    for (std::size_t r = 0; r < kTile; ++r) {
        const __m512i sum = _mm512_load_si512(sums + r * kTile);
        _mm512_storeu_ps(out + r * width, _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, own)));
    }
}

// 32 rows x 16 or 32 queries.
template <int Panels>
SAGE_TARGET inline __attribute__((always_inline)) void block(const Rows& low, const Rows& high,
                                                             const std::int8_t* panel,
                                                             const std::int32_t* correction,
                                                             std::size_t size, float* out) {
    constexpr std::size_t kWidth = Panels * kTile;
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (Panels == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (std::size_t d = 0; d < size; d += kTileCodes) {
        _tile_loadd(4, low.at + d, low.stride);
        _tile_loadd(6, panel + d * kWidth, 4 * kWidth);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(5, high.at + d, high.stride);
        _tile_dpbusd(1, 5, 6);
        if constexpr (Panels == 2) {
            _tile_loadd(7, panel + d * kWidth + 4 * kTile, 4 * kWidth);
            _tile_dpbusd(2, 4, 7);
            _tile_dpbusd(3, 5, 7);
        }
    }
    alignas(64) std::int32_t sums[4][kTile * kTile];
    _tile_stored(0, sums[0], 4 * kTile);
    _tile_stored(1, sums[1], 4 * kTile);
    store(sums[0], correction, kWidth, out);
    store(sums[1], correction, kWidth, out + kTile * kWidth);
    if constexpr (Panels == 2) {
        _tile_stored(2, sums[2], 4 * kTile);
        _tile_stored(3, sums[3], 4 * kTile);
        store(sums[2], correction + kTile, kWidth, out + kTile);
        store(sums[3], correction + kTile, kWidth, out + kTile * kWidth + kTile);
    }
}

SAGE_TARGET void code_panel(const std::uint8_t* const* rows, std::size_t n,
                            const std::int8_t* panel, const std::int32_t* correction,
                            std::size_t width, std::size_t size, float* out) {
    std::size_t r = 0;
    if (size % kTileCodes == 0 && n >= 2 * kTile) {
        static const TileConfig config;
        alignas(64) std::uint8_t room[2][kTile * kMaxCodes];
        _tile_loadconfig(&config);
        for (; r + 2 * kTile <= n; r += 2 * kTile) {
            const Rows low(rows + r, size, room[0]);
            const Rows high(rows + r + kTile, size, room[1]);
            if (width == kTile) {
                block<1>(low, high, panel, correction, size, out + r * width);
            } else {
                block<2>(low, high, panel, correction, size, out + r * width);
            }
        }
        _tile_release();
    }
    if (r < n) {
        avx512_vnni_code_panel(rows + r, n - r, panel, correction, width, size, out + r * width);
    }
}

}  // namespace

CodePanel amx_code_panel() { return code_panel; }

}  // namespace sage

#endif
