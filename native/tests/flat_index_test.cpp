#include "sage/flat_index.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <thread>

#include "check.hpp"
#include "sage/error.hpp"
#include "temporary_folder.hpp"

namespace {

std::vector<float> random_rows(std::size_t n, std::size_t dim, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> rows(n * dim);
    for (auto& x : rows) x = normal(random);
    return rows;
}

struct Found {
    std::vector<std::int64_t> ids;
    std::vector<float> scores;
};

Found search(const sage::FlatIndex& index, const std::vector<float>& queries, std::size_t k,
             unsigned threads = 1, const sage::Allow& allow = {}) {
    const std::size_t m = queries.size() / index.dim();
    Found found{std::vector<std::int64_t>(m * k), std::vector<float>(m * k)};
    index.search(queries.data(), m, k, allow, threads, found.ids.data(), found.scores.data());
    return found;
}

}  // namespace

TEST(all_tiers_and_thread_counts_agree_bit_for_bit) {
    constexpr std::size_t kDim = 70;
    const auto rows = random_rows(9000, kDim, 1);
    const auto queries = random_rows(40, kDim, 2);
    for (const auto metric : {sage::Metric::cosine, sage::Metric::ip, sage::Metric::l2}) {
        Found expected;
        for (const sage::Tier tier : sage::available_tiers()) {
            sage::FlatIndex index(kDim, metric, tier);
            index.add(rows.data(), 5, nullptr, false);
            index.add(rows.data() + 5 * kDim, 9000 - 5, nullptr, false);
            for (const unsigned threads : {1U, 3U}) {
                const Found found = search(index, queries, 12, threads);
                if (expected.ids.empty()) expected = found;
                CHECK(found.ids == expected.ids);
                CHECK(found.scores == expected.scores);
            }
        }
    }
}

TEST(saved_index_answers_the_same) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    const auto rows = random_rows(700, 33, 3);
    const auto queries = random_rows(3, 33, 4);
    sage::FlatIndex index(33, sage::Metric::l2, sage::chosen_tier());
    index.add(rows.data(), 700, nullptr, false);
    const std::vector<std::int64_t> gone{0, 5, 699};
    CHECK(index.remove(gone) == 3);
    const Found expected = search(index, queries, 20);
    index.save(path, {});
    for (const bool map : {true, false}) {
        const auto opened = sage::FlatIndex::open(path, map, false, sage::chosen_tier());
        CHECK(opened->size() == 697);
        CHECK(search(*opened, queries, 20).ids == expected.ids);
        opened->verify();
        // Numbering goes on after the greatest id ever used.
        CHECK(opened->add(rows.data(), 1, nullptr, false).at(0) == 700);
        opened->save(path, {});
        CHECK(search(*opened, queries, 20).scores.size() == 60);
        index.save(path, {});
    }
}

TEST(wrong_input_is_named_and_changes_nothing) {
    sage::FlatIndex index(4, sage::Metric::cosine, sage::chosen_tier());
    std::vector<float> rows = random_rows(3, 4, 5);
    const std::vector<std::int64_t> ids{7, 8, 7};
    CHECK_THROWS(std::invalid_argument, index.add(rows.data(), 3, ids.data(), false));
    rows[6] = NAN;
    CHECK_THROWS(std::invalid_argument, index.add(rows.data(), 3, nullptr, false));
    CHECK(index.size() == 0);
    CHECK_THROWS(std::invalid_argument, index.remove(ids));
    CHECK_THROWS(std::invalid_argument, sage::FlatIndex(0, sage::Metric::ip, sage::Tier::scalar));
    CHECK_THROWS(std::invalid_argument, search(index, {1, 2, 3, INFINITY}, 1));
}

TEST(changes_beside_searches) {
    constexpr std::size_t kDim = 24;
    sage::FlatIndex index(kDim, sage::Metric::ip, sage::chosen_tier());
    const auto rows = random_rows(64, kDim, 6);
    const auto queries = random_rows(4, kDim, 7);
    index.add(rows.data(), 64, nullptr, false);
    std::atomic<bool> stop{false};
    std::atomic<int> wrong{0};
    std::vector<std::thread> readers;
    for (int i = 0; i < 2; ++i) {
        readers.emplace_back([&] {
            while (!stop) {
                const Found found = search(index, queries, 5, 2);
                const std::vector<std::int64_t> asked{1, 1000000};
                index.rows_of(asked);
                for (const auto id : found.ids) wrong += id < 0 ? 1 : 0;
            }
        });
    }
    for (int round = 0; round < 60; ++round) {
        const auto added = index.add(rows.data(), 64, nullptr, false);
        index.remove(std::span(added).first(50));
        if (round % 7 == 0) index.compact();
    }
    stop = true;
    for (auto& reader : readers) reader.join();
    CHECK(wrong == 0);
    CHECK(index.size() == 64 + 60 * 14);
}

TEST(codes_give_what_float32_gives) {
    for (const std::size_t dim : {70U, 128U}) {
        const auto rows = random_rows(6000, dim, 21);
        const auto queries = random_rows(45, dim, 22);
        for (const auto metric : {sage::Metric::cosine, sage::Metric::ip, sage::Metric::l2}) {
            for (const sage::Tier tier : sage::available_tiers()) {
                Found expected;
                for (const auto storage :
                     {sage::Storage::float32, sage::Storage::int8, sage::Storage::bfloat16}) {
                    sage::FlatIndex index(sage::RowFormat{dim, storage, true}, metric, tier);
                    index.add(rows.data(), 5, nullptr, false);
                    index.add(rows.data() + 5 * dim, 6000 - 5, nullptr, false);
                    const Found found = search(index, queries, 12, 2);
                    if (expected.ids.empty()) expected = found;
                    CHECK(found.ids == expected.ids);
                    CHECK(found.scores == expected.scores);
                }
            }
        }
    }
}
