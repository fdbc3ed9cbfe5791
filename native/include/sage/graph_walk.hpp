// Best-first search over the links of a graph of rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sage/row_scorer.hpp"

namespace sage {

inline constexpr std::uint32_t kNoLink = ~std::uint32_t{0};

// Up to `width` links per row, the rest kNoLink.
struct GraphView {
    const std::uint32_t* links;
    std::size_t width;
    std::size_t rows;                      // that have links
    std::span<const std::uint32_t> hubs;  // where walks begin

    std::span<const std::uint32_t> of(std::uint32_t row) const noexcept {
        const std::uint32_t* first = links + row * width;
        std::size_t count = 0;
        while (count < width && first[count] != kNoLink) ++count;
        return {first, count};
    }
};

struct Near {
    float score;  // greater is nearer
    std::uint32_t row;
};

// Equal scores by the smaller row, so that walks do not depend on the order of links.
inline bool nearer(const Near& x, const Near& y) {
    return x.score != y.score ? x.score > y.score : x.row < y.row;
}

// Reusable by one thread, query after query.
class GraphWalk {
public:
    // The `effort` nearest rows met, nearest first. Valid until the next call.
    const std::vector<Near>& run(const GraphView& graph, RowScorer& scorer, std::size_t effort);

private:
    struct Step {
        Near near;
        bool expanded;
    };

    bool visit(std::uint32_t row);
    void consider(RowScorer& scorer, std::size_t effort);

    std::vector<std::uint64_t> visited_;        // bit per row
    std::vector<std::uint32_t> visited_words_;  // to clear
    std::vector<Step> beam_;                    // nearest first
    std::size_t next_ = 0;                      // no step before it is unexpanded
    std::vector<std::uint32_t> fresh_;
    std::vector<float> scores_;
    std::vector<Near> found_;
};

}  // namespace sage
