#include "sage/row_scorer.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sage {
namespace {

constexpr std::size_t kLine = 64;  // bytes of a cache line

void fetch(const void* start, std::size_t bytes) {
    const auto* at = static_cast<const char*>(start);
    for (std::size_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + i);
}

}  // namespace

RowScorer::RowScorer(const RowStore& store, const Kernels& kernels, Metric metric)
    : store_(store),
      kernels_(kernels),
      metric_(metric),
      dim_(store.format().dim),
      values_(dim_),
      room_(dim_) {
    if (store.format().storage == Storage::int8) codes_.resize(store.format().code_bytes());
}

void RowScorer::aim(const float* query) {
    const double norm2 = kernels_.dot_norm_f64(query, query, dim_).norm2;
    norm2_ = static_cast<float>(norm2);
    double factor = 1.0;
    if (metric_ == Metric::cosine) factor = norm2 > 0.0 ? 1.0 / std::sqrt(norm2) : 0.0;
    for (std::size_t d = 0; d < dim_; ++d) values_[d] = static_cast<float>(query[d] * factor);
    if (codes_.empty()) return;
    double gap = 0.0;
    std::int32_t sum = 0;
    scale_ = encode_query(values_.data(), dim_, kernels_.query_limit, codes_.data(),
                          codes_.size(), &gap, &sum);
    correction_ = kZeroCode * sum;
}

void RowScorer::aim_at_row(std::uint64_t row) { aim(store_.vector(row, room_.data())); }

void RowScorer::score(std::span<const std::uint32_t> rows, float* out) {
    const RowFormat& format = store_.format();
    const std::size_t n = rows.size();
    if (mul_.size() < n) {
        mul_.resize(n);
        bias_.resize(n);
        vectors_at_.resize(n);
        codes_at_.resize(n);
        if (format.storage == Storage::bfloat16) widened_.resize(n * dim_);
    }
    for (std::size_t i = 0; i < n; ++i) {
        const RowBlock& block = store_.block_of(rows[i]);
        const std::uint64_t inside = rows[i] - block.first;
        if (format.has_codes()) {
            block.ensure_codes(inside, 1, format);
            codes_at_[i] = block.codes + inside * format.code_bytes();
            fetch(codes_at_[i], format.code_bytes());
        } else {
            block.ensure_vectors(inside, 1, format);
            vectors_at_[i] = block.vectors + inside * dim_;
            fetch(vectors_at_[i], format.vector_bytes());
        }
        const float norm = block.norms[inside];
        const float step = format.has_steps() ? block.steps[inside] : 1.0F;
        const float factor = metric_ == Metric::cosine ? norm : metric_ == Metric::l2 ? 2.0F : 1.0F;
        mul_[i] = step * factor;
        bias_[i] = metric_ == Metric::l2 ? -norm * norm : 0.0F;
    }
    if (format.storage == Storage::int8) {
        kernels_.code_rows(codes_at_.data(), n, codes_.data(), &correction_, 1, codes_.size(), out,
                           n);
    } else {
        if (format.storage == Storage::bfloat16) {
            for (std::size_t i = 0; i < n; ++i) {
                float* const wide = widened_.data() + i * dim_;
                kernels_.decode_bfloat16(reinterpret_cast<const std::uint16_t*>(codes_at_[i]), dim_,
                                         wide);
                vectors_at_[i] = wide;
            }
        }
        kernels_.dot_rows(vectors_at_.data(), n, values_.data(), 1, dim_, out, n);
    }
    for (std::size_t i = 0; i < n; ++i) {
        const float score = out[i] * scale_ * mul_[i] + bias_[i];
        out[i] = std::isnan(score) ? std::numeric_limits<float>::lowest() : score;
    }
    scored_ += n;
}

float RowScorer::distance(float score) const noexcept {
    const float squared = metric_ == Metric::cosine ? 2.0F - 2.0F * score : norm2_ - score;
    // Rounding can make it negative, and unknown lengths anything.
    return squared > 0.0F ? squared : std::isnan(squared) ? std::numeric_limits<float>::max() : 0.0F;
}

}  // namespace sage
