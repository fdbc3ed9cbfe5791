// Linking rows, and linking around removed ones.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>

#include "sage/graph_index.hpp"
#include "sage/parallel.hpp"

namespace sage {
namespace {

// A neighbour is left out when one that is kept is nearer to it by this factor (of squared
// distances) than the row itself: above 1 keeps some longer links, which shorten walks.
constexpr float kAlpha = 1.2F;
constexpr std::size_t kLargestBatch = 512;  // rows that do not meet each other on walks
constexpr std::size_t kFirstBatch = 64;     // rows that are compared with each other
constexpr std::size_t kPruned = 160;        // candidates that pruning looks at

// Runs work(scratch, i) for i below count on all threads, each with a scratch of its own.
template <class Make, class Work>
void for_all(std::size_t count, const Make& make, const Work& work) {
    std::atomic<std::size_t> next{0};
    const auto workers =
        static_cast<unsigned>(std::min<std::size_t>(default_threads(), count / 4 + 1));
    run_workers(workers, [&](unsigned) {
        auto scratch = make();
        for (;;) {
            const std::size_t i = next.fetch_add(1, std::memory_order_relaxed);
            if (i >= count) break;
            work(scratch, i);
        }
    });
}

}  // namespace

std::vector<std::uint32_t> GraphIndex::hubs_of(std::size_t rows) const {
    const auto root = static_cast<std::size_t>(std::sqrt(static_cast<double>(rows)));
    const std::size_t count = std::min(rows, std::clamp<std::size_t>(root, 16, 1024));
    std::vector<std::uint32_t> hubs;
    for (std::size_t i = 0; i < count; ++i) {
        hubs.push_back(static_cast<std::uint32_t>(i * rows / count));
    }
    return hubs;
}

std::vector<Near> GraphIndex::scored(RowScorer& scorer, std::uint32_t row,
                                     const LinkList& others) const {
    std::vector<float> scores(others.size());
    scorer.aim_at_row(row);
    scorer.score(others, scores.data());
    std::vector<Near> all;
    for (std::size_t i = 0; i < others.size(); ++i) all.push_back({scores[i], others[i]});
    return all;
}

// `scorer` aims at `row`, and the candidates' scores are its.
GraphIndex::LinkList GraphIndex::prune(RowScorer& scorer, std::uint32_t row,
                                       std::vector<Near> candidates) const {
    std::sort(candidates.begin(), candidates.end(), nearer);
    const auto twice = [](const Near& x, const Near& y) { return x.row == y.row; };
    candidates.erase(std::unique(candidates.begin(), candidates.end(), twice), candidates.end());
    std::erase_if(candidates, [row](const Near& near) { return near.row == row; });
    if (candidates.size() > kPruned) candidates.resize(kPruned);
    LinkList left;
    std::vector<float> distances;
    for (const Near& near : candidates) {
        left.push_back(near.row);
        distances.push_back(scorer.distance(near.score));
    }
    LinkList kept;
    std::vector<float> scores(left.size());
    while (!left.empty() && kept.size() < settings_.degree) {
        const std::uint32_t nearest = left.front();
        kept.push_back(nearest);
        left.erase(left.begin());
        distances.erase(distances.begin());
        if (left.empty() || kept.size() == settings_.degree) break;
        scorer.aim_at_row(nearest);
        scorer.score(left, scores.data());
        std::size_t stay = 0;
        for (std::size_t i = 0; i < left.size(); ++i) {
            if (kAlpha * scorer.distance(scores[i]) <= distances[i]) continue;
            left[stay] = left[i];
            distances[stay] = distances[i];
            ++stay;
        }
        left.resize(stay);
        distances.resize(stay);
    }
    return kept;
}

void GraphIndex::link_pending() {
    // Only the holder of linking_ changes rows' storage and links: reading them needs no lock.
    while (linked_ < store_.rows()) {
        const std::size_t left = store_.rows() - linked_;
        const std::size_t batch =
            std::clamp<std::size_t>(linked_ / 2, kFirstBatch, kLargestBatch);
        link_batch(std::min(left, batch));
    }
}

void GraphIndex::link_batch(std::size_t count) {
    struct Scratch {
        RowScorer scorer;
        GraphWalk walk;
    };
    const auto make = [&] { return Scratch{RowScorer(store_, *kernels_, building_metric()), {}}; };
    const auto first = static_cast<std::uint32_t>(linked_);
    LinkList batch(count);
    for (std::size_t i = 0; i < count; ++i) batch[i] = first + static_cast<std::uint32_t>(i);
    const GraphView graph = view();

    std::vector<LinkList> own(count);
    for_all(count, make, [&](Scratch& scratch, std::size_t i) {
        std::vector<Near> candidates = scored(scratch.scorer, batch[i], batch);
        if (graph.rows > 0) {
            const auto& found = scratch.walk.run(graph, scratch.scorer, settings_.build_effort);
            candidates.insert(candidates.end(), found.begin(), found.end());
        }
        own[i] = prune(scratch.scorer, batch[i], std::move(candidates));
    });

    // Links back, gathered by the row that gets them.
    std::vector<std::pair<std::uint32_t, std::uint32_t>> back;
    for (std::size_t i = 0; i < count; ++i) {
        for (const std::uint32_t to : own[i]) back.emplace_back(to, batch[i]);
    }
    std::sort(back.begin(), back.end());
    std::vector<std::size_t> starts;
    for (std::size_t i = 0; i < back.size(); ++i) {
        if (i == 0 || back[i].first != back[i - 1].first) starts.push_back(i);
    }
    std::vector<LinkList> changed(starts.size());
    for_all(starts.size(), make, [&](Scratch& scratch, std::size_t i) {
        const std::uint32_t row = back[starts[i]].first;
        LinkList& links = changed[i];
        if (row >= first) {
            links = own[row - first];
        } else {
            const auto old = graph.of(row);
            links.assign(old.begin(), old.end());
        }
        const std::size_t end = i + 1 < starts.size() ? starts[i + 1] : back.size();
        for (std::size_t at = starts[i]; at < end; ++at) {
            const std::uint32_t from = back[at].second;
            if (std::find(links.begin(), links.end(), from) == links.end()) links.push_back(from);
        }
        if (links.size() > width_) {
            auto candidates = scored(scratch.scorer, row, links);
            links = prune(scratch.scorer, row, std::move(candidates));
        }
    });

    auto hubs = hubs_of(linked_ + count);
    const std::size_t cells = (linked_ + count) * width_;
    const Publishing publishing(*this);
    if (links_.capacity() < cells) links_.reserve(std::max(cells, 2 * links_.capacity()));
    links_.resize(cells, kNoLink);
    const auto put = [this](std::uint32_t row, const LinkList& links) {
        const auto place = links_.begin() + static_cast<std::ptrdiff_t>(row * width_);
        std::fill(std::copy(links.begin(), links.end(), place),
                  place + static_cast<std::ptrdiff_t>(width_), kNoLink);
    };
    for (std::size_t i = 0; i < count; ++i) put(batch[i], own[i]);
    for (std::size_t i = 0; i < starts.size(); ++i) put(back[starts[i]].first, changed[i]);
    linked_ += count;
    hubs_ = std::move(hubs);
}

std::vector<std::uint32_t> GraphIndex::bridged(std::span<const std::uint64_t> rows,
                                               std::size_t linked) const {
    std::vector<std::uint32_t> number(linked_, kNoLink);
    for (std::size_t i = 0; i < linked; ++i) number[rows[i]] = static_cast<std::uint32_t>(i);
    const GraphView graph = view();
    std::vector<std::uint32_t> links(linked * width_, kNoLink);
    const auto make = [&] { return RowScorer(store_, *kernels_, building_metric()); };
    for_all(linked, make, [&](RowScorer& scorer, std::size_t i) {
        const auto row = static_cast<std::uint32_t>(rows[i]);
        LinkList kept;
        bool lost = false;
        for (const std::uint32_t to : graph.of(row)) {
            if (number[to] != kNoLink) {
                kept.push_back(to);
                continue;
            }
            lost = true;
            // What a removed neighbour led to is led to directly.
            for (const std::uint32_t beyond : graph.of(to)) {
                if (number[beyond] != kNoLink && beyond != row) kept.push_back(beyond);
            }
        }
        if (lost) {
            std::sort(kept.begin(), kept.end());
            kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
            if (kept.size() > width_) {
                auto candidates = scored(scorer, row, kept);
                kept = prune(scorer, row, std::move(candidates));
            }
        }
        for (std::size_t at = 0; at < kept.size(); ++at) {
            links[i * width_ + at] = number[kept[at]];
        }
    });
    return links;
}

}  // namespace sage
