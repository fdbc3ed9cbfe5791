#include "sage/graph_index.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "sage/candidate_pool.hpp"
#include "sage/error.hpp"
#include "sage/parallel.hpp"

namespace sage {
namespace {

constexpr std::uint32_t kGraphKind = 1;
// One score on a walk costs about as much as this many in a scan, which reads rows in order.
constexpr double kWalkCost = 4.0;

struct GraphShape {
    std::uint32_t degree;
    std::uint32_t build_effort;
    std::uint32_t width;
    std::uint32_t reserved_word;
    std::uint64_t linked;
    std::uint64_t reserved[5];
};
static_assert(sizeof(GraphShape) == 64 && std::is_trivially_copyable_v<GraphShape>);

void check(const GraphSettings& settings) {
    if (settings.degree < 2 || settings.degree > kMaxDegree) {
        throw std::invalid_argument("degree is " + std::to_string(settings.degree) +
                                    "; it must be from 2 to " + std::to_string(kMaxDegree));
    }
    if (settings.build_effort < 1 || settings.build_effort > kMaxBuildEffort) {
        throw std::invalid_argument("build_effort is " + std::to_string(settings.build_effort) +
                                    "; it must be from 1 to " + std::to_string(kMaxBuildEffort));
    }
}

std::span<const std::byte> bytes_of(const void* start, std::size_t size) {
    return {static_cast<const std::byte*>(start), size};
}

}  // namespace

GraphIndex::GraphIndex(const RowFormat& format, Metric metric, Tier tier, GraphSettings settings)
    : FlatIndex(format, metric, tier),
      settings_(settings),
      width_(settings.degree + settings.degree / 2) {
    check(settings);
}

std::vector<std::int64_t> GraphIndex::add(const float* vectors, std::size_t n,
                                          const std::int64_t* ids, bool replace) {
    const std::lock_guard linking(linking_);
    if (store_.rows() + n >= kNoLink) {
        throw std::invalid_argument("a graph index holds fewer than 2**32 - 1 rows, removed ones "
                                    "included; this add would make " +
                                    std::to_string(store_.rows() + n));
    }
    auto added = FlatIndex::add(vectors, n, ids, replace);
    link_pending();
    return added;
}

std::vector<std::uint64_t> GraphIndex::compact() {
    const std::lock_guard linking(linking_);
    const std::lock_guard writer(writer_);
    const std::vector<std::uint64_t> rows = live_rows();
    const auto end = std::lower_bound(rows.begin(), rows.end(), linked_);
    const auto linked = static_cast<std::size_t>(end - rows.begin());
    std::vector<std::uint32_t> links = bridged(rows, linked);
    std::vector<std::uint32_t> hubs = hubs_of(linked);
    return compact_locked([&]() noexcept {
        links_ = std::move(links);
        hubs_ = std::move(hubs);
        linked_ = linked;
    });
}

bool GraphIndex::worth_walking(std::uint64_t allowed, std::size_t effort) const noexcept {
    // A walk must meet rows / allowed times as many rows.
    const double share = static_cast<double>(allowed) / static_cast<double>(linked_);
    const double met = static_cast<double>(effort * settings_.degree) / share;
    return kWalkCost * met < static_cast<double>(allowed);
}

void GraphIndex::search_with(std::size_t effort, const float* queries, std::size_t m,
                             std::size_t k, const Allow& allow, unsigned threads,
                             std::int64_t* ids, float* scores) const {
    if (k == 0) throw std::invalid_argument("k is 0; it must be at least 1");
    effort = std::max(effort == 0 ? kDefaultEffort : effort, k);
    const Reading reading(*this);
    const auto filter = row_filter(allow);
    // Rows that may be returned: among those with links, and the others.
    std::uint64_t allowed = linked_;
    if (filter) {
        allowed = 0;
        for (std::uint64_t word = 0; word * 64 < linked_; ++word) {
            std::uint64_t bits = (*filter)[word];
            if (linked_ - word * 64 < 64) bits &= (std::uint64_t{1} << (linked_ % 64)) - 1;
            allowed += static_cast<std::uint64_t>(std::popcount(bits));
        }
    }
    if (allowed == 0 || !worth_walking(allowed, effort)) {
        scan_rows(queries, m, k, filter, threads, ids, scores);
        return;
    }
    const double share = static_cast<double>(linked_) / static_cast<double>(allowed);
    const auto wide = static_cast<std::size_t>(static_cast<double>(effort) * share);
    const std::size_t expected = std::min<std::size_t>(k, allowed);

    std::vector<double> norms2(m);
    for (std::size_t q = 0; q < m; ++q) norms2[q] = query_norm2(queries + q * dim_, q);
    std::fill_n(ids, m * k, std::int64_t{-1});
    std::fill_n(scores, m * k, std::numeric_limits<float>::quiet_NaN());

    // Rows without links, exactly.
    std::vector<std::int64_t> more_ids;
    std::vector<float> more_scores;
    if (linked_ < ids_.size()) {
        std::vector<std::uint64_t> pending = filter ? *filter : live_;
        std::fill_n(pending.begin(), linked_ / 64, 0);
        pending[linked_ / 64] &= ~((std::uint64_t{1} << (linked_ % 64)) - 1);
        more_ids.resize(m * k);
        more_scores.resize(m * k);
        scan_rows(queries, m, k, pending, threads, more_ids.data(), more_scores.data());
    }

    const unsigned wanted = threads == 0 ? default_threads() : threads;
    const auto workers = static_cast<unsigned>(std::min<std::size_t>(wanted, (m + 3) / 4));
    std::atomic<std::size_t> next{0};
    std::atomic<std::uint64_t> rescored{0};
    std::atomic<std::uint64_t> walked{0};
    std::vector<std::uint8_t> poor(m, 0);
    run_workers(workers, [&](unsigned) {
        RowScorer scorer(store_, *kernels_, metric_);
        GraphWalk walk;
        std::vector<float> room(dim_);
        std::vector<Ranked> best;
        std::uint64_t looked_at = 0;
        for (;;) {
            const std::size_t q = next.fetch_add(1, std::memory_order_relaxed);
            if (q >= m) break;
            const float* query = queries + q * dim_;
            scorer.aim(query);
            best.clear();
            for (const Near& near : walk.run(view(), scorer, wide)) {
                if (filter && (((*filter)[near.row / 64] >> (near.row % 64)) & 1U) == 0) continue;
                best.push_back({exact_key(query, norms2[q], near.row, room.data()),
                                ids_[near.row], near.row});
            }
            looked_at += best.size();
            if (best.size() < expected) {
                poor[q] = 1;
                continue;
            }
            for (std::size_t i = 0; !more_ids.empty() && i < k && more_ids[q * k + i] >= 0; ++i) {
                const double score = more_scores[q * k + i];
                best.push_back({metric_ == Metric::l2 ? -score : score, more_ids[q * k + i], 0});
            }
            std::sort(best.begin(), best.end(), ranks_before);
            for (std::size_t i = 0; i < std::min(k, best.size()); ++i) {
                ids[q * k + i] = best[i].id;
                scores[q * k + i] =
                    static_cast<float>(metric_ == Metric::l2 ? -best[i].key : best[i].key);
            }
        }
        rescored.fetch_add(looked_at, std::memory_order_relaxed);
        walked.fetch_add(scorer.scored(), std::memory_order_relaxed);
    });
    // Islands in the graph, or vectors whose length float32 cannot work with.
    std::uint64_t walks = m;
    for (std::size_t q = 0; q < m; ++q) {
        if (poor[q] == 0) continue;
        scan_rows(queries + q * dim_, 1, k, filter, threads, ids + q * k, scores + q * k);
        --walks;
    }
    queries_.fetch_add(walks, std::memory_order_relaxed);
    rows_rescored_.fetch_add(rescored.load(), std::memory_order_relaxed);
    rows_scanned_.fetch_add(walked.load(), std::memory_order_relaxed);
}

std::uint64_t GraphIndex::linked_rows() const {
    const Reading reading(*this);
    return linked_;
}

std::size_t GraphIndex::link_bytes() const {
    const Reading reading(*this);
    return links_.capacity() * sizeof(std::uint32_t);
}

void GraphIndex::save(const std::string& path, std::span<const Extra> extra) const {
    const std::lock_guard linking(linking_);
    const std::lock_guard writer(writer_);
    const std::vector<std::uint64_t> rows = live_rows();
    const auto end = std::lower_bound(rows.begin(), rows.end(), linked_);
    const auto linked = static_cast<std::size_t>(end - rows.begin());
    const std::vector<std::uint32_t> links = bridged(rows, linked);
    GraphShape shape{};
    shape.degree = static_cast<std::uint32_t>(settings_.degree);
    shape.build_effort = static_cast<std::uint32_t>(settings_.build_effort);
    shape.width = static_cast<std::uint32_t>(width_);
    shape.linked = linked;
    std::vector<Extra> all{{"graph", bytes_of(&shape, sizeof(shape))},
                           {"links", bytes_of(links.data(), links.size() * sizeof(links[0]))}};
    all.insert(all.end(), extra.begin(), extra.end());
    write_file(path, kGraphKind, all);
}

GraphSettings graph_settings(const SectionReader& file) {
    const auto bytes = file.checked("graph");
    GraphShape shape{};
    if (bytes.size() != sizeof(shape)) {
        throw CorruptFile(file.file()->path(), "graph", "has a wrong size");
    }
    std::memcpy(&shape, bytes.data(), sizeof(shape));
    const GraphSettings settings{shape.degree, shape.build_effort};
    try {
        check(settings);
    } catch (const std::invalid_argument& error) {
        throw CorruptFile(file.file()->path(), "graph", error.what());
    }
    return settings;
}

void GraphIndex::attach(const SectionReader& file) {
    GraphShape shape{};
    std::memcpy(&shape, file.checked("graph").data(), sizeof(shape));
    if (shape.width != width_ || shape.linked > ids_.size() || ids_.size() >= kNoLink) {
        throw CorruptFile(file.file()->path(), "graph", "does not fit the rows");
    }
    const auto bytes = file.checked("links");
    linked_ = shape.linked;
    if (bytes.size() != linked_ * width_ * sizeof(std::uint32_t)) {
        throw CorruptFile(file.file()->path(), "links",
                          "has " + std::to_string(bytes.size()) + " bytes, which does not fit " +
                              std::to_string(linked_) + " rows");
    }
    links_.resize(linked_ * width_);
    if (!links_.empty()) std::memcpy(links_.data(), bytes.data(), bytes.size());
    for (std::size_t at = 0; at < links_.size(); ++at) {
        if (links_[at] >= linked_ && links_[at] != kNoLink) {
            throw CorruptFile(file.file()->path(), "links",
                              "row " + std::to_string(at / width_) + " leads to row " +
                                  std::to_string(links_[at]));
        }
    }
    hubs_ = hubs_of(linked_);
}

}  // namespace sage
