#include "sage/flat_index.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "sage/error.hpp"

namespace sage {
namespace {

constexpr std::int64_t kGreatestId = std::numeric_limits<std::int64_t>::max() - 1;

[[noreturn]] void reject_value(const float* copy, std::size_t row, std::size_t dim) {
    for (std::size_t column = 0; column < dim; ++column) {
        if (std::isfinite(copy[column])) continue;
        const char* name = std::isnan(copy[column]) ? "nan" : copy[column] > 0 ? "inf" : "-inf";
        throw std::invalid_argument("vectors row " + std::to_string(row) + ", column " +
                                    std::to_string(column) + " is " + name +
                                    "; all values must be finite");
    }
    throw std::invalid_argument("vectors row " + std::to_string(row) + " has no finite norm");
}

// An id that is negative, too great, or there twice.
void check_ids(const std::int64_t* ids, std::size_t n) {
    IdTable seen;
    seen.reserve(n);
    for (std::size_t i = 0; i < n; ++i) {
        if (ids[i] < 0 || ids[i] > kGreatestId) {
            throw std::invalid_argument("ids[" + std::to_string(i) + "] is " +
                                        std::to_string(ids[i]) +
                                        "; ids must be from 0 to 2**63 - 2");
        }
        if (const std::uint64_t first = seen.find(ids[i]); first != IdTable::kMissing) {
            throw std::invalid_argument("id " + std::to_string(ids[i]) + " is in ids twice, at " +
                                        std::to_string(first) + " and " + std::to_string(i));
        }
        seen.set(ids[i], i);
    }
}

}  // namespace

FlatIndex::Reading::Reading(const FlatIndex& index) {
    const std::lock_guard gate(index.gate_);
    lock_ = std::shared_lock(index.state_);
}

FlatIndex::Publishing::Publishing(const FlatIndex& index) {
    const std::lock_guard gate(index.gate_);
    lock_ = std::unique_lock(index.state_);
}

FlatIndex::FlatIndex(const RowFormat& format, Metric metric, Tier tier)
    : dim_(format.dim), metric_(metric), kernels_(&kernels_of(tier)), store_(format) {
    if (dim_ < 1 || dim_ > kMaxDim) {
        throw std::invalid_argument("dim is " + std::to_string(dim_) + "; it must be from 1 to " +
                                    std::to_string(kMaxDim));
    }
}

void FlatIndex::require_writable(const char* what) const {
    if (read_only_) {
        throw std::invalid_argument(std::string(what) + ": this index was opened with read_only=True");
    }
}

void FlatIndex::ensure_table() const {
    if (table_ready_.load(std::memory_order_acquire)) return;
    const std::lock_guard lock(table_mutex_);
    if (table_ready_.load(std::memory_order_relaxed)) return;
    IdTable table;
    table.reserve(ids_.size());
    for (std::uint64_t row = 0; row < ids_.size(); ++row) {
        if (!live(row)) continue;
        if (file_ && table.find(ids_[row]) != IdTable::kMissing) {
            throw CorruptFile(file_->file()->path(), "ids",
                              "id " + std::to_string(ids_[row]) + " is there twice");
        }
        table.set(ids_[row], row);
    }
    table_ = std::move(table);
    table_ready_.store(true, std::memory_order_release);
}

std::uint64_t FlatIndex::find_live(std::int64_t id) const {
    const std::uint64_t row = table_.find(id);
    return row != IdTable::kMissing && live(row) ? row : IdTable::kMissing;
}

// What the scan needs per row: the norm, for cosine its inverse. A norm so great or so small that
// float32 arithmetic on it could overflow or lose its relative precision becomes NaN: the scan
// then takes the row as a candidate whatever its score, and float64 decides.
float FlatIndex::stored_norm(double norm2) const noexcept {
    const double norm = std::sqrt(norm2);
    constexpr float kUnknown = std::numeric_limits<float>::quiet_NaN();
    if (metric_ != Metric::cosine) return norm <= 1e18 ? static_cast<float>(norm) : kUnknown;
    if (norm == 0.0) return 0.0F;
    return norm >= 1e-30 && norm <= 1e30 ? static_cast<float>(1.0 / norm) : kUnknown;
}

// Codes of a vector; where only they are kept, `vector` becomes what they stand for.
void FlatIndex::encode(float* vector, const RowStore::Span& span, std::uint64_t row) const {
    const RowFormat& format = store_.format();
    const std::size_t size = format.code_bytes();
    std::uint8_t* codes = span.codes + row * size;
    if (format.storage == Storage::int8) {
        span.steps[row] = encode_int8(vector, dim_, codes, size, span.gaps + row);
        if (!format.has_vectors()) decode_int8(codes, span.steps[row], dim_, vector);
    } else {
        auto* halves = reinterpret_cast<std::uint16_t*>(codes);
        encode_bfloat16(vector, dim_, halves, size, span.gaps + row);
        if (!format.has_vectors()) decode_bfloat16(halves, dim_, vector);
    }
    if (!format.has_vectors()) span.gaps[row] = 0.0F;
}

void FlatIndex::append_live(std::uint64_t rows) {
    const std::uint64_t before = ids_.size() - rows;
    live_.resize((ids_.size() + 63) / 64, 0);
    for (std::uint64_t row = before; row < ids_.size(); ++row) {
        live_[row / 64] |= std::uint64_t{1} << (row % 64);
    }
}

std::vector<std::int64_t> FlatIndex::add(const float* vectors, std::size_t n,
                                         const std::int64_t* ids, bool replace) {
    const std::lock_guard writer(writer_);
    require_writable("add");
    std::vector<std::int64_t> new_ids(n);
    std::vector<std::uint64_t> replaced;
    if (n == 0) return new_ids;
    if (ids != nullptr) {
        std::copy(ids, ids + n, new_ids.begin());  // the caller's array may change meanwhile
        check_ids(new_ids.data(), n);
        ensure_table();
        for (std::size_t i = 0; i < n; ++i) {
            const std::uint64_t row = find_live(new_ids[i]);
            if (row == IdTable::kMissing) continue;
            if (!replace) {
                throw std::invalid_argument("ids[" + std::to_string(i) + "] is " +
                                            std::to_string(new_ids[i]) +
                                            ", which is in the index already");
            }
            replaced.push_back(row);
        }
    } else {
        if (next_id_ > kGreatestId - static_cast<std::int64_t>(n)) {
            throw std::invalid_argument("no ids are left after " + std::to_string(next_id_ - 1) +
                                        "; give ids");
        }
        for (std::size_t i = 0; i < n; ++i) new_ids[i] = next_id_ + static_cast<std::int64_t>(i);
    }

    // The long part: searches go on beside it, as nothing of it is visible yet.
    RowStore::Staging staging = store_.stage(n);
    std::size_t row = 0;
    const RowFormat& format = store_.format();
    std::vector<float> room(dim_);
    for (const RowStore::Span& span : staging.spans) {
        for (std::uint64_t i = 0; i < span.rows; ++i, ++row) {
            float* copy = format.has_vectors() ? span.vectors + i * dim_ : room.data();
            std::memcpy(copy, vectors + row * dim_, dim_ * sizeof(float));
            double norm2 = kernels_->dot_norm_f64(copy, copy, dim_).norm2;
            if (!std::isfinite(norm2)) reject_value(copy, row, dim_);
            if (format.has_codes()) {
                encode(copy, span, i);
                if (!format.has_vectors()) {
                    norm2 = kernels_->dot_norm_f64(copy, copy, dim_).norm2;
                }
            }
            span.norms[i] = stored_norm(norm2);
        }
    }

    const Publishing publishing(*this);
    const bool table_ready = table_ready_.load(std::memory_order_relaxed);
    // All that may fail comes first.
    const std::size_t rows = ids_.size() + n;
    if (ids_.capacity() < rows) ids_.reserve(std::max(rows, 2 * ids_.capacity()));
    if (live_.capacity() * 64 < rows) live_.reserve((2 * rows + 63) / 64);
    if (table_ready) table_.reserve(rows);
    store_.publish(std::move(staging));
    for (const std::uint64_t old : replaced) {
        live_[old / 64] &= ~(std::uint64_t{1} << (old % 64));
    }
    removed_ += replaced.size();
    for (const std::int64_t id : new_ids) {
        if (table_ready) table_.set(id, ids_.size());
        ids_.push_back(id);
        next_id_ = std::max(next_id_, id + 1);
    }
    append_live(n);
    return new_ids;
}

std::size_t FlatIndex::remove(std::span<const std::int64_t> ids) {
    const std::lock_guard writer(writer_);
    require_writable("remove");
    ensure_table();
    std::vector<std::uint64_t> rows;
    rows.reserve(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
        const std::uint64_t row = find_live(ids[i]);
        if (row == IdTable::kMissing) {
            throw std::invalid_argument("ids[" + std::to_string(i) + "] is " +
                                        std::to_string(ids[i]) + ", which is not in the index");
        }
        rows.push_back(row);
    }
    const Publishing publishing(*this);
    std::size_t count = 0;
    for (const std::uint64_t row : rows) {
        count += live(row) ? 1 : 0;  // an id given twice counts once
        live_[row / 64] &= ~(std::uint64_t{1} << (row % 64));
    }
    removed_ += count;
    return count;
}

std::vector<std::uint64_t> FlatIndex::live_rows() const {
    const Reading reading(*this);
    std::vector<std::uint64_t> rows;
    rows.reserve(ids_.size() - removed_);
    for (std::uint64_t row = 0; row < ids_.size(); ++row) {
        if (live(row)) rows.push_back(row);
    }
    return rows;
}

std::vector<std::int64_t> FlatIndex::live_ids() const {
    const Reading reading(*this);
    std::vector<std::int64_t> all;
    all.reserve(ids_.size() - removed_);
    for (std::uint64_t row = 0; row < ids_.size(); ++row) {
        if (live(row)) all.push_back(ids_[row]);
    }
    return all;
}

std::vector<std::uint64_t> FlatIndex::compact() {
    const std::lock_guard writer(writer_);
    return compact_locked([] {});
}

std::vector<std::uint64_t> FlatIndex::compact_locked(const std::function<void()>& also) {
    require_writable("compact");
    const std::vector<std::uint64_t> rows = live_rows();
    if (removed_ == 0) return rows;
    const RowFormat& format = store_.format();
    const std::size_t code_bytes = format.code_bytes();
    RowStore fresh(format);
    RowStore::Staging staging = fresh.stage(rows.size());
    std::vector<std::int64_t> ids;
    ids.reserve(rows.size());
    std::size_t at = 0;
    for (const RowStore::Span& span : staging.spans) {
        for (std::uint64_t i = 0; i < span.rows; ++i, ++at) {
            const RowBlock& block = store_.block_of(rows[at]);
            const std::uint64_t inside = rows[at] - block.first;
            if (format.has_vectors()) {
                block.ensure_vectors(inside, 1, format);
                std::memcpy(span.vectors + i * dim_, block.vectors + inside * dim_,
                            format.vector_bytes());
            }
            if (format.has_codes()) {
                block.ensure_codes(inside, 1, format);
                std::memcpy(span.codes + i * code_bytes, block.codes + inside * code_bytes,
                            code_bytes);
                span.gaps[i] = block.gaps[inside];
            }
            if (format.has_steps()) span.steps[i] = block.steps[inside];
            span.norms[i] = block.norms[inside];
            ids.push_back(ids_[rows[at]]);
        }
    }
    fresh.publish(std::move(staging));
    std::vector<std::uint64_t> live((ids.size() + 63) / 64, ~std::uint64_t{0});
    if (ids.size() % 64 != 0) live.back() = (std::uint64_t{1} << (ids.size() % 64)) - 1;

    const Publishing publishing(*this);
    store_ = std::move(fresh);
    ids_ = std::move(ids);
    live_ = std::move(live);
    removed_ = 0;
    also();
    table_.clear();
    table_ready_.store(false, std::memory_order_release);
    return rows;
}

std::vector<std::int64_t> FlatIndex::rows_of(std::span<const std::int64_t> ids) const {
    const Reading reading(*this);
    ensure_table();
    std::vector<std::int64_t> rows;
    rows.reserve(ids.size());
    for (const std::int64_t id : ids) {
        const std::uint64_t row = find_live(id);
        rows.push_back(row == IdTable::kMissing ? -1 : static_cast<std::int64_t>(row));
    }
    return rows;
}

void FlatIndex::copy_vectors(std::span<const std::int64_t> ids, float* out) const {
    const Reading reading(*this);
    ensure_table();
    for (std::size_t i = 0; i < ids.size(); ++i) {
        const std::uint64_t row = find_live(ids[i]);
        if (row == IdTable::kMissing) {
            throw std::invalid_argument("ids[" + std::to_string(i) + "] is " +
                                        std::to_string(ids[i]) + ", which is not in the index");
        }
        float* const copy = out + i * dim_;
        const float* const stored = store_.vector(row, copy);
        if (stored != copy) std::memcpy(copy, stored, dim_ * sizeof(float));
    }
}

std::uint64_t FlatIndex::size() const {
    const Reading reading(*this);
    return ids_.size() - removed_;
}

FlatStats FlatIndex::stats() const {
    const Reading reading(*this);
    FlatStats stats{};
    stats.rows = ids_.size() - removed_;
    stats.removed = removed_;
    stats.blocks = store_.blocks().size();
    stats.memory_bytes = store_.memory_bytes() + ids_.capacity() * sizeof(std::int64_t) +
                         live_.capacity() * sizeof(std::uint64_t);
    {
        const std::lock_guard lock(table_mutex_);
        stats.memory_bytes += table_.memory_bytes();
    }
    if (file_) {
        const auto& file = *file_->file();
        (file.mapped() ? stats.mapped_bytes : stats.memory_bytes) += file.size();
    }
    stats.queries = queries_.load(std::memory_order_relaxed);
    stats.rows_scanned = rows_scanned_.load(std::memory_order_relaxed);
    stats.rows_rescored = rows_rescored_.load(std::memory_order_relaxed);
    return stats;
}

}  // namespace sage
