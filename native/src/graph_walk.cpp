#include "sage/graph_walk.hpp"

#include <algorithm>

namespace sage {

bool GraphWalk::visit(std::uint32_t row) {
    std::uint64_t& word = visited_[row / 64];
    const std::uint64_t bit = std::uint64_t{1} << (row % 64);
    if ((word & bit) != 0) return false;
    if (word == 0) visited_words_.push_back(row / 64);
    word |= bit;
    return true;
}

// Scores the rows in fresh_ and puts the near ones into the beam.
void GraphWalk::consider(RowScorer& scorer, std::size_t effort) {
    if (fresh_.empty()) return;
    scores_.resize(std::max(scores_.size(), fresh_.size()));
    scorer.score(fresh_, scores_.data());
    for (std::size_t i = 0; i < fresh_.size(); ++i) {
        const Near near{scores_[i], fresh_[i]};
        if (beam_.size() == effort && !nearer(near, beam_.back().near)) continue;
        const auto place =
            std::upper_bound(beam_.begin(), beam_.end(), near,
                             [](const Near& x, const Step& y) { return nearer(x, y.near); });
        const auto at = static_cast<std::size_t>(place - beam_.begin());
        if (beam_.size() == effort) beam_.pop_back();
        beam_.insert(beam_.begin() + static_cast<std::ptrdiff_t>(at), {near, false});
        next_ = std::min(next_, at);
    }
}

const std::vector<Near>& GraphWalk::run(const GraphView& graph, RowScorer& scorer,
                                        std::size_t effort) {
    for (const std::uint32_t word : visited_words_) visited_[word] = 0;
    visited_words_.clear();
    visited_.resize((graph.rows + 63) / 64, 0);
    beam_.clear();
    beam_.reserve(effort + 1);
    next_ = 0;
    fresh_.clear();
    for (const std::uint32_t hub : graph.hubs) {
        if (visit(hub)) fresh_.push_back(hub);
    }
    consider(scorer, effort);
    while (next_ < beam_.size()) {
        Step& step = beam_[next_];
        if (step.expanded) {
            ++next_;
            continue;
        }
        step.expanded = true;
        fresh_.clear();
        for (const std::uint32_t link : graph.of(step.near.row)) {
            if (visit(link)) fresh_.push_back(link);
        }
        consider(scorer, effort);
    }
    found_.clear();
    for (const Step& step : beam_) found_.push_back(step.near);
    return found_;
}

}  // namespace sage
