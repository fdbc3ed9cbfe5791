#include "sage/graph_index.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <set>
#include <thread>

#include "check.hpp"
#include "sage/error.hpp"
#include "temporary_folder.hpp"

namespace {

constexpr std::size_t kDim = 16;

std::vector<float> clustered_rows(std::size_t n, unsigned seed) {
    std::mt19937 centres(7);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> middle(20 * kDim);
    for (auto& x : middle) x = normal(centres);
    std::vector<float> rows(n * kDim);
    for (std::size_t r = 0; r < n; ++r) {
        const std::size_t cluster = random() % 20;
        for (std::size_t d = 0; d < kDim; ++d) {
            rows[r * kDim + d] = middle[cluster * kDim + d] + 0.4F * normal(random);
        }
    }
    return rows;
}

struct Found {
    std::vector<std::int64_t> ids;
    std::vector<float> scores;
};

Found walk(const sage::FlatIndex& index, const std::vector<float>& queries, std::size_t k,
           std::size_t effort, unsigned threads, const sage::Allow& allow = {}) {
    const std::size_t m = queries.size() / kDim;
    Found found{std::vector<std::int64_t>(m * k), std::vector<float>(m * k)};
    index.search_with(effort, queries.data(), m, k, allow, threads, found.ids.data(),
                      found.scores.data());
    return found;
}

double recall(const Found& found, const Found& exact, std::size_t k) {
    std::size_t hits = 0;
    for (std::size_t first = 0; first < exact.ids.size(); first += k) {
        const std::set<std::int64_t> ids(exact.ids.begin() + static_cast<std::ptrdiff_t>(first),
                                         exact.ids.begin() + static_cast<std::ptrdiff_t>(first + k));
        for (std::size_t i = first; i < first + k; ++i) hits += ids.count(found.ids[i]);
    }
    return static_cast<double>(hits) / static_cast<double>(exact.ids.size());
}

const sage::GraphSettings kSmall{8, 24};

}  // namespace

TEST(walks_find_most_neighbours_on_every_tier) {
    const auto rows = clustered_rows(3000, 1);
    const auto queries = clustered_rows(60, 2);
    for (const auto storage : {sage::Storage::float32, sage::Storage::int8}) {
        for (const sage::Tier tier : sage::available_tiers()) {
            const sage::RowFormat format{kDim, storage, true};
            sage::GraphIndex graph(format, sage::Metric::l2, tier, kSmall);
            graph.add(rows.data(), 3000, nullptr, false);
            CHECK(graph.linked_rows() == 3000);
            sage::FlatIndex flat(format, sage::Metric::l2, tier);
            flat.add(rows.data(), 3000, nullptr, false);
            const Found exact = walk(flat, queries, 10, 0, 1);
            const Found found = walk(graph, queries, 10, 40, 1);
            CHECK(recall(found, exact, 10) > 0.9);
            CHECK(walk(graph, queries, 10, 40, 3).ids == found.ids);
        }
    }
}

TEST(graph_survives_saving_removal_and_compaction) {
    const TemporaryFolder folder;
    const auto rows = clustered_rows(2000, 3);
    const auto queries = clustered_rows(40, 4);
    const sage::RowFormat format{kDim, sage::Storage::int8, true};
    sage::GraphIndex graph(format, sage::Metric::cosine, sage::chosen_tier(), kSmall);
    sage::FlatIndex flat(format, sage::Metric::cosine, sage::chosen_tier());
    std::vector<std::int64_t> gone;
    for (std::int64_t id = 0; id < 2000; id += 3) gone.push_back(id);
    for (sage::FlatIndex* index : {static_cast<sage::FlatIndex*>(&graph), &flat}) {
        index->add(rows.data(), 2000, nullptr, false);
        index->remove(gone);
    }
    const Found exact = walk(flat, queries, 10, 0, 1);
    // So little effort that filters and size leave it to walks.
    CHECK(recall(walk(graph, queries, 10, 20, 1), exact, 10) > 0.75);
    graph.save(folder.file("graph"), {});
    for (const bool map : {true, false}) {
        const auto opened =
            sage::FlatIndex::open(folder.file("graph"), map, false, sage::chosen_tier());
        CHECK(dynamic_cast<sage::GraphIndex*>(opened.get()) != nullptr);
        CHECK(recall(walk(*opened, queries, 10, 20, 2), exact, 10) > 0.75);
        opened->add(rows.data(), 100, nullptr, false);
        opened->compact();
        CHECK(opened->size() == graph.size() + 100);
    }
    graph.compact();
    CHECK(graph.linked_rows() == graph.size());
    CHECK(recall(walk(graph, queries, 10, 20, 1), exact, 10) > 0.75);
    CHECK(graph.stats().rows_scanned < 2 * 40 * 1333 / 2);
}

TEST(wrong_graph_settings_are_refused) {
    const sage::RowFormat format{kDim};
    for (const sage::GraphSettings settings :
         {sage::GraphSettings{1, 10}, sage::GraphSettings{2000, 10}, sage::GraphSettings{8, 0}}) {
        CHECK_THROWS(std::invalid_argument, sage::GraphIndex(format, sage::Metric::ip,
                                                             sage::Tier::scalar, settings));
    }
    const sage::GraphIndex empty(format, sage::Metric::ip, sage::Tier::scalar, kSmall);
    CHECK(walk(empty, std::vector<float>(kDim, 1.0F), 2, 0, 1).ids.at(0) == -1);
    CHECK_THROWS(std::invalid_argument,
                 walk(empty, std::vector<float>(kDim, INFINITY), 2, 0, 1));
}

TEST(graph_changes_beside_searches) {
    const auto rows = clustered_rows(900, 5);
    const auto queries = clustered_rows(8, 6);
    sage::GraphIndex graph(sage::RowFormat{kDim, sage::Storage::int8, true}, sage::Metric::l2,
                           sage::chosen_tier(), kSmall);
    graph.add(rows.data(), 900, nullptr, false);
    std::atomic<bool> stop{false};
    std::atomic<int> wrong{0};
    std::vector<std::thread> readers;
    for (int i = 0; i < 2; ++i) {
        readers.emplace_back([&] {
            while (!stop) {
                for (const auto id : walk(graph, queries, 5, 10, 2).ids) wrong += id < 0 ? 1 : 0;
            }
        });
    }
    for (int round = 0; round < 5; ++round) {
        const auto added = graph.add(rows.data(), 120, nullptr, false);
        graph.remove(std::span(added).first(80));
        if (round % 2 == 0) graph.compact();
    }
    stop = true;
    for (auto& reader : readers) reader.join();
    CHECK(wrong == 0);
    CHECK(graph.size() == 900 + 5 * 40);
}
