#include "sage/kernels.hpp"

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
