#include "sage/candidate_pool.hpp"

#include <limits>
#include <random>

#include "check.hpp"

namespace {

struct Exact {
    const std::vector<double>& keys;
    sage::Ranked operator()(std::uint64_t row) const {
        return {keys[row], static_cast<std::int64_t>(row), row};
    }
    float floor_of(double key) const {
        return std::nextafter(static_cast<float>(key), -std::numeric_limits<float>::infinity());
    }
};

std::vector<sage::Ranked> oracle(const std::vector<double>& keys, std::size_t k) {
    std::vector<sage::Ranked> all;
    for (std::uint64_t row = 0; row < keys.size(); ++row) {
        all.push_back({keys[row], static_cast<std::int64_t>(row), row});
    }
    std::sort(all.begin(), all.end(), sage::ranks_before);
    all.resize(std::min(k, all.size()));
    return all;
}

void compare(const std::vector<double>& keys, std::size_t k, float slack, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<float> noise(-slack, slack);
    const Exact exact{keys};
    sage::CandidatePool first(std::min(k, keys.size()));
    sage::CandidatePool second(std::min(k, keys.size()));
    for (std::uint64_t row = 0; row < keys.size(); ++row) {
        const float score = static_cast<float>(keys[row]) + noise(random);
        const float bound = 1.01F * slack + 1e-6F;
        (row % 3 == 0 ? first : second).push(row, score + bound, score - bound, exact);
    }
    first.absorb(second, exact);
    const auto& best = first.finish(exact);
    const auto expected = oracle(keys, k);
    CHECK(best.size() == expected.size());
    for (std::size_t i = 0; i < best.size(); ++i) {
        CHECK(best[i].id == expected[i].id && best[i].key == expected[i].key);
    }
}

}  // namespace

TEST(candidate_pool_is_exact_within_bounds) {
    std::mt19937_64 random(2);
    std::normal_distribution<double> normal;
    for (const std::size_t k : {1U, 2U, 10U, 100U, 3000U}) {
        std::vector<double> keys(2000);
        for (auto& key : keys) key = normal(random);
        for (const float slack : {0.0F, 1e-3F, 0.5F, 10.0F}) compare(keys, k, slack, k);
    }
}

TEST(candidate_pool_breaks_ties_by_id) {
    compare(std::vector<double>(1000, 0.25), 7, 0.1F, 3);
    std::vector<double> few(1000);
    for (std::size_t i = 0; i < few.size(); ++i) few[i] = static_cast<double>(i % 3);
    compare(few, 400, 0.2F, 4);
}

TEST(candidate_pool_takes_unknown_bounds) {
    const std::vector<double> keys{1.0, 3.0, 2.0};
    const Exact exact{keys};
    sage::CandidatePool pool(1);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (std::uint64_t row = 0; row < 3; ++row) pool.push(row, nan, nan, exact);
    const auto& best = pool.finish(exact);
    CHECK(best.size() == 1 && best[0].id == 1);
}

TEST(candidate_pool_memory_stays_small) {
    // Bounds that never rule anything out: the pool must score exactly instead of growing.
    const std::vector<double> keys(100000, 1.0);
    const Exact exact{keys};
    sage::CandidatePool pool(5);
    for (std::uint64_t row = 0; row < keys.size(); ++row) pool.push(row, 2.0F, 0.0F, exact);
    const auto& best = pool.finish(exact);
    CHECK(best.size() == 5 && best[4].id == 4);
}
