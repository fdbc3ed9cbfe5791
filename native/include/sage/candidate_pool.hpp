// Top-k of one query from scores that are only known within bounds.
//
// A candidate stays while its upper bound reaches the k-th greatest lower bound seen. When bounds
// cannot thin the pool (near-ties, duplicates), candidates are scored exactly, so memory stays at
// O(k) whatever the data.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace sage {

struct Ranked {
    double key;  // greater is better
    std::int64_t id;
    std::uint64_t row;
};

// Better first; equal keys by the smaller id, so that results do not depend on order or threads.
inline bool ranks_before(const Ranked& x, const Ranked& y) {
    return x.key != y.key ? x.key > y.key : x.id < y.id;
}

class CandidatePool {
public:
    explicit CandidatePool(std::size_t k) : k_(k), limit_(2 * k + 64) {}

    // Rows whose upper bound is below this can be left out.
    float threshold() const noexcept { return threshold_; }
    std::uint64_t exact_scores() const noexcept { return exact_scores_; }

    // `exact(row)` gives a Ranked; `floor_of(key)` the scan score that a row of that key reaches
    // at least, rounded down.
    template <class Exact>
    void push(std::uint64_t row, float upper, float lower, const Exact& exact) {
        if (upper < threshold_) return;
        // Overflowed bounds say nothing; they must not reach the comparators as NaN either.
        if (std::isnan(upper)) upper = std::numeric_limits<float>::infinity();
        if (std::isnan(lower)) lower = -std::numeric_limits<float>::infinity();
        bounded_.push_back({upper, lower, row});
        if (bounded_.size() + settled_.size() >= limit_) shrink(exact);
    }

    // Takes over the candidates of another worker's pool for the same query.
    template <class Exact>
    void absorb(const CandidatePool& other, const Exact& exact) {
        threshold_ = std::max(threshold_, other.threshold_);
        exact_scores_ += other.exact_scores_;
        settled_.insert(settled_.end(), other.settled_.begin(), other.settled_.end());
        keep_best_settled(exact);
        for (const auto& c : other.bounded_) push(c.row, c.upper, c.lower, exact);
    }

    // The k best, best first.
    template <class Exact>
    std::vector<Ranked>& finish(const Exact& exact) {
        tighten();
        settle(exact);
        std::sort(settled_.begin(), settled_.end(), ranks_before);
        return settled_;
    }

private:
    struct Bounded {
        float upper;
        float lower;
        std::uint64_t row;
    };

    // Raises the threshold to the k-th greatest lower bound and drops what it rules out.
    void tighten() {
        // Settled rows count through threshold_ already: with k of them it is their k-th score.
        if (bounded_.size() >= k_ && k_ > 0) {
            const auto kth = bounded_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
            std::nth_element(bounded_.begin(), kth, bounded_.end(),
                             [](const Bounded& x, const Bounded& y) { return x.lower > y.lower; });
            threshold_ = std::max(threshold_, kth->lower);
        }
        std::erase_if(bounded_, [this](const Bounded& c) { return c.upper < threshold_; });
    }

    template <class Exact>
    void shrink(const Exact& exact) {
        tighten();
        // Without this, near-ties would make every push pay for an nth_element.
        if (bounded_.size() + settled_.size() > limit_ - limit_ / 4) settle(exact);
    }

    template <class Exact>
    void settle(const Exact& exact) {
        for (const auto& c : bounded_) settled_.push_back(exact(c.row));
        exact_scores_ += bounded_.size();
        bounded_.clear();
        keep_best_settled(exact);
    }

    template <class Exact>
    void keep_best_settled(const Exact& exact) {
        if (settled_.size() < k_ || k_ == 0) return;
        const auto kth = settled_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
        std::nth_element(settled_.begin(), kth, settled_.end(), ranks_before);
        threshold_ = std::max(threshold_, exact.floor_of(kth->key));
        settled_.resize(k_);
    }

    std::size_t k_;
    std::size_t limit_;
    float threshold_ = -std::numeric_limits<float>::infinity();
    std::uint64_t exact_scores_ = 0;
    std::vector<Bounded> bounded_;
    std::vector<Ranked> settled_;
};

}  // namespace sage
