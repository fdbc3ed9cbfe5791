// Exact nearest-neighbour index.
//
// Results are those of a float64 computation on the stored vectors, ties by the smaller id: the
// same on every instruction set tier and for every number of threads. Stored are the vectors as
// they came or, without keep_vectors, what their codes stand for. A scan reads the codes.
//
// Safe from many threads. Searches run beside each other and beside the long part of add(),
// compact() and save(); changes become visible at once when the call returns.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sage/id_table.hpp"
#include "sage/kernels.hpp"
#include "sage/row_store.hpp"
#include "sage/section_file.hpp"

namespace sage {

enum class Metric : std::uint32_t { cosine = 0, ip = 1, l2 = 2 };

inline constexpr std::size_t kMaxDim = 8192;

// Which rows a search may return: all, those of some ids, or those whose id is set in a mask.
struct Allow {
    std::optional<std::span<const std::int64_t>> ids;
    std::optional<std::span<const std::uint8_t>> mask;  // mask[id]; ids beyond its end are not allowed
};

struct FlatStats {
    std::uint64_t rows;       // live
    std::uint64_t removed;    // removed, not yet compacted
    std::uint64_t blocks;
    std::uint64_t memory_bytes;
    std::uint64_t mapped_bytes;
    std::uint64_t queries;        // searched so far
    std::uint64_t rows_scanned;   // row x query pairs scored within bounds
    std::uint64_t rows_rescored;  // pairs scored again in float64
};

class FlatIndex {
public:
    using Extra = std::pair<std::string, std::span<const std::byte>>;

    // Throws std::invalid_argument for a dim outside 1 .. kMaxDim.
    FlatIndex(const RowFormat& format, Metric metric, Tier tier);
    FlatIndex(std::size_t dim, Metric metric, Tier tier)
        : FlatIndex(RowFormat{dim}, metric, tier) {}
    virtual ~FlatIndex() = default;
    FlatIndex(const FlatIndex&) = delete;
    FlatIndex& operator=(const FlatIndex&) = delete;

    // A GraphIndex where the file says so. Throws FileError, CorruptFile.
    static std::unique_ptr<FlatIndex> open(const std::string& path, bool map, bool read_only,
                                           Tier tier);

    // Adds n rows; `ids` null numbers them from one past the greatest id ever used. With
    // `replace`, an id that is there already gets the new vector; without, it is an error.
    // All or nothing. Throws std::invalid_argument (naming row and value).
    virtual std::vector<std::int64_t> add(const float* vectors, std::size_t n,
                                          const std::int64_t* ids, bool replace);
    // Removes; every id must be there. Returns how many were removed. All or nothing.
    std::size_t remove(std::span<const std::int64_t> ids);
    // Drops removed rows from memory; returns the numbers that the remaining rows had.
    virtual std::vector<std::uint64_t> compact();

    // ids and scores are [m, k], best first; -1 and NaN beyond what exists. `threads` 0: default.
    void search(const float* queries, std::size_t m, std::size_t k, const Allow& allow,
                unsigned threads, std::int64_t* ids, float* scores) const;
    // What the kind of index makes of it: a graph may miss neighbours, fewer with more `effort`
    // (0: its default); a flat index is exact whatever the effort.
    virtual void search_with(std::size_t effort, const float* queries, std::size_t m,
                             std::size_t k, const Allow& allow, unsigned threads,
                             std::int64_t* ids, float* scores) const;

    // Row numbers of ids (-1: not there); rows count all adds since the last compact().
    std::vector<std::int64_t> rows_of(std::span<const std::int64_t> ids) const;
    // The live rows in order, and their ids.
    std::vector<std::uint64_t> live_rows() const;
    std::vector<std::int64_t> live_ids() const;
    // Copies the stored vectors of ids, [ids.size(), dim]. Throws for an id that is not there.
    void copy_vectors(std::span<const std::int64_t> ids, float* out) const;

    // Writes the live rows, atomically. `extra`: further sections (payload). Returns the rows.
    // Throws FileError.
    virtual void save(const std::string& path, std::span<const Extra> extra) const;
    // Checksums of everything in the file that the index was opened from. Throws CorruptFile.
    void verify() const;
    // A further section of the file that the index was opened from, checked; empty if none.
    std::span<const std::byte> extra_section(std::string_view name) const;

    std::size_t dim() const noexcept { return dim_; }
    const RowFormat& format() const noexcept { return store_.format(); }
    Metric metric() const noexcept { return metric_; }
    Tier tier() const noexcept { return kernels_->tier; }
    bool read_only() const noexcept { return read_only_; }
    std::uint64_t size() const;
    FlatStats stats() const;

protected:
    // Taken by every reader for a moment, so that a stream of searches cannot starve a writer.
    class Reading {
    public:
        explicit Reading(const FlatIndex& index);

    private:
        std::shared_lock<std::shared_mutex> lock_;
    };
    class Publishing {
    public:
        explicit Publishing(const FlatIndex& index);

    private:
        std::unique_lock<std::shared_mutex> lock_;
    };

    struct SearchJob;
    class Scanner;

    void require_writable(const char* what) const;
    void ensure_table() const;
    bool live(std::uint64_t row) const noexcept {
        return (live_[row / 64] >> (row % 64)) & 1U;
    }
    void append_live(std::uint64_t rows);
    void encode(float* vector, const RowStore::Span& span, std::uint64_t row) const;
    std::uint64_t find_live(std::int64_t id) const;
    float stored_norm(double norm2) const noexcept;
    std::optional<std::vector<std::uint64_t>> row_filter(const Allow& allow) const;
    // The exact search of the rows in `filter` (all without one). The caller holds a Reading.
    void scan_rows(const float* queries, std::size_t m, std::size_t k,
                   const std::optional<std::vector<std::uint64_t>>& filter, unsigned threads,
                   std::int64_t* ids, float* scores) const;
    // The float64 score of a row (negative distance for l2); `room` as for RowStore::vector().
    double exact_key(const float* query, double query_norm2, std::uint64_t row, float* room) const;
    // The squared norm of a query. Throws std::invalid_argument where it is not finite.
    double query_norm2(const float* query, std::size_t number) const;
    // compact() and save() without their lock; `also` runs when the new rows become visible.
    std::vector<std::uint64_t> compact_locked(const std::function<void()>& also);
    void write_file(const std::string& path, std::uint32_t kind,
                    std::span<const Extra> extra) const;

    std::size_t dim_;
    Metric metric_;
    const Kernels* kernels_;
    bool read_only_ = false;

    mutable std::mutex writer_;        // one add/remove/compact/save at a time
    mutable std::mutex gate_;          // see Reading
    mutable std::shared_mutex state_;  // guards what follows

    RowStore store_;
    std::vector<std::int64_t> ids_;      // per row
    std::vector<std::uint64_t> live_;    // bit per row
    std::uint64_t removed_ = 0;
    std::int64_t next_id_ = 0;
    std::shared_ptr<const SectionReader> file_;

    mutable std::mutex table_mutex_;
    mutable std::atomic<bool> table_ready_{false};  // built when first needed
    mutable IdTable table_;

    mutable std::atomic<std::uint64_t> queries_{0};
    mutable std::atomic<std::uint64_t> rows_scanned_{0};
    mutable std::atomic<std::uint64_t> rows_rescored_{0};
};

}  // namespace sage
