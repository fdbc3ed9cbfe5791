// Scores of scattered rows to one query, from what the rows are stored as: what a graph walk asks
// for. No bounds: the walk's best are scored again in float64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sage/flat_index.hpp"
#include "sage/kernels.hpp"
#include "sage/row_store.hpp"

namespace sage {

class RowScorer {
public:
    RowScorer(const RowStore& store, const Kernels& kernels, Metric metric);

    // Takes a query of finite values, or a stored row as one.
    void aim(const float* query);
    void aim_at_row(std::uint64_t row);
    // Greater is nearer; the lowest float where arithmetic gave no number. Throws CorruptFile.
    void score(std::span<const std::uint32_t> rows, float* out);
    // The squared distance that a score of cosine or l2 means (cosine: of normalised vectors).
    float distance(float score) const noexcept;
    std::uint64_t scored() const noexcept { return scored_; }

private:
    const RowStore& store_;
    const Kernels& kernels_;
    Metric metric_;
    std::size_t dim_;
    std::vector<float> values_;  // the query as scored: normalised for cosine
    std::vector<float> room_;
    std::vector<float> widened_;
    std::vector<std::int8_t> codes_;
    std::int32_t correction_ = 0;
    float scale_ = 1.0F;
    float norm2_ = 0.0F;
    std::vector<const float*> vectors_at_;
    std::vector<const std::uint8_t*> codes_at_;
    std::vector<float> mul_, bias_;
    std::uint64_t scored_ = 0;
};

}  // namespace sage
