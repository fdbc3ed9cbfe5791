#include "sage/kernels.hpp"
#include "sage/storage.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "check.hpp"

namespace {

struct Data {
    std::size_t n;
    std::size_t m;
    std::size_t dim;
    std::vector<float> rows;
    std::vector<float> queries;
    std::vector<const float*> at;

    Data(std::size_t rows_count, std::size_t queries_count, std::size_t d)
        : n(rows_count), m(queries_count), dim(d), rows(n * d), queries(m * d) {
        std::mt19937 random(static_cast<unsigned>(n * 31 + m * 7 + d));
        std::normal_distribution<float> normal;
        for (auto& x : rows) x = normal(random);
        for (auto& x : queries) x = normal(random);
        for (std::size_t r = 0; r < n; ++r) at.push_back(rows.data() + r * dim);
    }

    double dot(std::size_t r, std::size_t q) const {
        double sum = 0.0;
        for (std::size_t d = 0; d < dim; ++d) {
            sum += static_cast<double>(rows[r * dim + d]) * queries[q * dim + d];
        }
        return sum;
    }

    // What decision 0002 allows the float32 sum to be off by.
    double bound(std::size_t r, std::size_t q) const {
        double x = 0.0;
        double y = 0.0;
        for (std::size_t d = 0; d < dim; ++d) {
            x += static_cast<double>(rows[r * dim + d]) * rows[r * dim + d];
            y += static_cast<double>(queries[q * dim + d]) * queries[q * dim + d];
        }
        return static_cast<double>(dim + 16) * 0x1p-24 * std::sqrt(x * y);
    }
};

}  // namespace

TEST(dots_stay_within_their_bound_on_every_tier) {
    for (const sage::Tier tier : sage::available_tiers()) {
        const sage::Kernels& kernels = sage::kernels_of(tier);
        for (const std::size_t dim : {1U, 2U, 7U, 8U, 15U, 16U, 17U, 33U, 100U, 384U, 513U, 1031U}) {
            for (const std::size_t n : {1U, 3U, 6U, 13U}) {
                const Data data(n, 2 * kernels.lanes, dim);
                for (const std::size_t width : {kernels.lanes, 2 * kernels.lanes}) {
                    std::vector<float> panel(width * dim);
                    for (std::size_t q = 0; q < width; ++q) {
                        for (std::size_t d = 0; d < dim; ++d) {
                            panel[d * width + q] = data.queries[q * dim + d];
                        }
                    }
                    std::vector<float> out(n * width, NAN);
                    kernels.dot_panel(data.at.data(), n, panel.data(), width, dim, out.data());
                    for (std::size_t r = 0; r < n; ++r) {
                        for (std::size_t q = 0; q < width; ++q) {
                            CHECK(std::abs(out[r * width + q] - data.dot(r, q)) <= data.bound(r, q));
                        }
                    }
                }
                for (const std::size_t m : {1U, 2U, 3U, 4U, 8U}) {
                    std::vector<float> out(m * (n + 1), NAN);
                    kernels.dot_rows(data.at.data(), n, data.queries.data(), m, dim, out.data(),
                                     n + 1);
                    for (std::size_t r = 0; r < n; ++r) {
                        for (std::size_t q = 0; q < m; ++q) {
                            CHECK(std::abs(out[q * (n + 1) + r] - data.dot(r, q)) <=
                                  data.bound(r, q));
                        }
                    }
                }
            }
        }
    }
}

TEST(float64_sums_are_the_same_on_every_tier) {
    for (const std::size_t dim : {1U, 3U, 4U, 15U, 16U, 17U, 31U, 384U, 1000U}) {
        const Data data(4, 4, dim);
        for (std::size_t i = 0; i < 4; ++i) {
            const float* query = data.queries.data() + i * dim;
            const auto expected = sage::scalar_kernels().dot_norm_f64(query, data.at[i], dim);
            const double distance =
                sage::scalar_kernels().squared_distance_f64(query, data.at[i], dim);
            CHECK(std::abs(expected.dot - data.dot(i, i)) <= 1e-12 * static_cast<double>(dim + 1));
            for (const sage::Tier tier : sage::available_tiers()) {
                const auto sums = sage::kernels_of(tier).dot_norm_f64(query, data.at[i], dim);
                CHECK(sums.dot == expected.dot && sums.norm2 == expected.norm2);
                CHECK(sage::kernels_of(tier).squared_distance_f64(query, data.at[i], dim) ==
                      distance);
            }
        }
    }
}

TEST(sift_reports_what_reaches_the_threshold) {
    constexpr std::size_t kRows = 37;
    constexpr std::size_t kMost = 32;
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    std::vector<float> mul(kRows, 0.5F), bias(kRows), a(kRows), b(kRows, 0.25F), c(kRows, 0.01F);
    for (auto& x : bias) x = normal(random);
    for (auto& x : a) x = std::abs(normal(random)) * 0.1F;
    std::vector<float> scale(kMost, 2.0F), qa(kMost, 0.5F), qb(kMost, 0.125F), threshold(kMost);
    for (auto& x : threshold) x = normal(random);
    for (const sage::Tier tier : sage::available_tiers()) {
        const sage::Kernels& kernels = sage::kernels_of(tier);
        const std::size_t width = 2 * kernels.lanes;
        std::vector<float> dots(kRows * width);
        for (auto& x : dots) x = normal(random);
        dots[3 * width + 1] = NAN;
        const sage::RowTerms row{mul.data(), bias.data(), a.data(), b.data(), c.data()};
        const sage::QueryTerms query{scale.data(), qa.data(), qb.data(), threshold.data()};
        std::vector<sage::Hit> hits(kRows * width);
        for (const std::size_t valid : {width - 3, width, std::size_t{1}}) {
            std::vector<int> found(kRows * width, 0);
            const std::size_t count = kernels.sift_panel(dots.data(), kRows, width, valid, row,
                                                         query, hits.data());
            for (std::size_t i = 0; i < count; ++i) found[hits[i].row * width + hits[i].lane] += 1;
            for (std::size_t q = 0; q < width; ++q) {
                std::vector<float> column(kRows);
                for (std::size_t r = 0; r < kRows; ++r) column[r] = dots[r * width + q];
                std::vector<int> alone(kRows, 0);
                std::vector<sage::Hit> single(kRows);
                const std::size_t singles =
                    kernels.sift_rows(column.data(), kRows, static_cast<std::uint32_t>(q), row,
                                      query, single.data());
                for (std::size_t i = 0; i < singles; ++i) {
                    alone[single[i].row] += 1;
                    CHECK(single[i].lane == q);
                }
                for (std::size_t r = 0; r < kRows; ++r) {
                    const double score = double{dots[r * width + q]} * 2.0 * 0.5 + bias[r];
                    const double upper = score + 0.5 * a[r] + 0.125 * 0.25 + 0.01F;
                    if (std::abs(upper - threshold[q]) < 1e-5) continue;  // either way is right
                    const int expected = !(upper < threshold[q]) ? 1 : 0;
                    CHECK(alone[r] == expected);
                    CHECK(found[r * width + q] == (q < valid ? expected : 0));
                }
            }
        }
    }
}

TEST(sums_of_codes_are_exact_on_every_tier) {
    std::mt19937 random(11);
    for (const sage::Tier tier : sage::available_tiers()) {
        const sage::Kernels& kernels = sage::kernels_of(tier);
        std::uniform_int_distribution<int> code(1, 255);
        std::uniform_int_distribution<int> signed_code(-kernels.query_limit, kernels.query_limit);
        for (const std::size_t size : {32U, 64U, 96U, 384U, 1056U, 8192U}) {
            for (const bool extreme : {false, true}) {
                const std::size_t n = 75;  // tiles of AMX hold 32
                const std::size_t m = 2 * kernels.lanes;
                std::vector<std::uint8_t> rows(n * size);
                std::vector<std::int8_t> queries(m * size);
                // Extreme: every pair of products is as great as it can be, of either sign.
                for (auto& x : rows) x = extreme ? 255 : static_cast<std::uint8_t>(code(random));
                for (std::size_t i = 0; i < queries.size(); ++i) {
                    const int most = i / size % 2 == 0 ? kernels.query_limit : -kernels.query_limit;
                    queries[i] = static_cast<std::int8_t>(extreme ? most : signed_code(random));
                }
                std::vector<const std::uint8_t*> at;
                // Side by side, then, from the middle on, each for itself.
                for (std::size_t r = 0; r < n; ++r) {
                    const std::size_t lies = r < n / 2 ? r : n - 1 - (r - n / 2);
                    at.push_back(rows.data() + lies * size);
                }
                std::vector<std::int32_t> correction(m);
                for (auto& x : correction) x = code(random) * 128;
                const auto expected = [&](std::size_t r, std::size_t q) {
                    std::int64_t sum = 0;
                    for (std::size_t d = 0; d < size; ++d) {
                        sum += std::int64_t{at[r][d]} * queries[q * size + d];
                    }
                    return static_cast<float>(sum - correction[q]);
                };
                for (const std::size_t width : {kernels.lanes, 2 * kernels.lanes}) {
                    std::vector<std::int8_t> panel(width * size);
                    for (std::size_t q = 0; q < width; ++q) {
                        for (std::size_t d = 0; d < size; ++d) {
                            panel[d / 4 * 4 * width + 4 * q + d % 4] = queries[q * size + d];
                        }
                    }
                    std::vector<float> out(n * width, NAN);
                    kernels.code_panel(at.data(), n, panel.data(), correction.data(), width, size,
                                       out.data());
                    for (std::size_t r = 0; r < n; ++r) {
                        for (std::size_t q = 0; q < width; ++q) {
                            CHECK(out[r * width + q] == expected(r, q));
                        }
                    }
                }
                for (const std::size_t few : {1U, 2U, 3U, 4U, 7U}) {
                    std::vector<float> out(few * n, NAN);
                    kernels.code_rows(at.data(), n, queries.data(), correction.data(), few, size,
                                      out.data(), n);
                    for (std::size_t r = 0; r < n; ++r) {
                        for (std::size_t q = 0; q < few; ++q) {
                            CHECK(out[q * n + r] == expected(r, q));
                        }
                    }
                }
            }
        }
    }
}

TEST(codes_stay_within_the_gap_that_they_name) {
    std::mt19937 random(12);
    std::normal_distribution<float> normal;
    for (const float scale : {1e-44F, 1e-37F, 1e-20F, 1.0F, 1e15F, 1e38F}) {
        for (const std::size_t dim : {1U, 5U, 32U, 100U}) {
            std::vector<float> x(dim);
            for (auto& value : x) value = std::clamp(normal(random), -2.0F, 2.0F) * scale;
            const sage::RowFormat format{dim, sage::Storage::int8, false};
            std::vector<std::uint8_t> codes(format.code_bytes());
            std::vector<std::uint16_t> halves(2 * format.code_bytes());
            std::vector<float> back(dim);
            const auto distance = [&] {
                double sum = 0.0;
                for (std::size_t d = 0; d < dim; ++d) {
                    const double missed = static_cast<double>(x[d]) - static_cast<double>(back[d]);
                    sum += missed * missed;
                }
                return std::sqrt(sum);
            };
            float gap = NAN;
            const float step =
                sage::encode_int8(x.data(), dim, codes.data(), codes.size(), &gap);
            sage::decode_int8(codes.data(), step, dim, back.data());
            CHECK(distance() <= gap);
            for (std::size_t d = dim; d < codes.size(); ++d) CHECK(codes[d] == sage::kZeroCode);
            sage::encode_bfloat16(x.data(), dim, halves.data(), 2 * halves.size(), &gap);
            for (const sage::Tier tier : sage::available_tiers()) {
                std::fill(back.begin(), back.end(), NAN);
                sage::kernels_of(tier).decode_bfloat16(halves.data(), dim, back.data());
                CHECK(distance() <= gap);
            }
        }
    }
}
