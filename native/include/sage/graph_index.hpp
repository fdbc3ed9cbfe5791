// Approximate nearest-neighbour index: a graph over the rows of a FlatIndex.
//
// One layer, as Vamana (Subramanya et al., DiskANN, NeurIPS 2019) and its parallel batch insertion
// (Manohar et al., ParlayANN, PPoPP 2024) build it: a new row is linked to the rows that a walk
// towards it finds, pruned so that links also lead out of its neighbourhood, and back. Walks begin
// at hubs, rows spread evenly over the index, so that clusters without links between them are
// found too.
//
// Rows that are not linked yet are searched exactly beside the walk; so is everything when a
// filter leaves few rows, or a walk finds fewer rows than there are.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "sage/flat_index.hpp"
#include "sage/graph_walk.hpp"

namespace sage {

inline constexpr std::size_t kMaxDegree = 1024;
inline constexpr std::size_t kMaxBuildEffort = 100'000;
inline constexpr std::size_t kDefaultEffort = 64;

struct GraphSettings {
    std::size_t degree = 32;         // links that pruning leaves
    std::size_t build_effort = 200;  // rows that a walk keeps while linking
};

// The settings of a graph that a file holds, checked. Throws CorruptFile.
GraphSettings graph_settings(const SectionReader& file);

class GraphIndex final : public FlatIndex {
public:
    // Throws std::invalid_argument for settings out of range.
    GraphIndex(const RowFormat& format, Metric metric, Tier tier, GraphSettings settings);

    // As FlatIndex, and links the rows before it returns. Rows stay in, and are found by exact
    // search, should linking fail (memory, a damaged file).
    std::vector<std::int64_t> add(const float* vectors, std::size_t n, const std::int64_t* ids,
                                  bool replace) override;
    // Links around removed rows, then drops them.
    std::vector<std::uint64_t> compact() override;
    void search_with(std::size_t effort, const float* queries, std::size_t m, std::size_t k,
                     const Allow& allow, unsigned threads, std::int64_t* ids,
                     float* scores) const override;
    void save(const std::string& path, std::span<const Extra> extra) const override;

    const GraphSettings& settings() const noexcept { return settings_; }
    std::uint64_t linked_rows() const;
    std::size_t link_bytes() const;

private:
    friend class FlatIndex;  // open()
    using LinkList = std::vector<std::uint32_t>;

    GraphView view() const noexcept { return {links_.data(), width_, linked_, hubs_}; }
    Metric building_metric() const noexcept {
        return metric_ == Metric::cosine ? Metric::cosine : Metric::l2;
    }
    void attach(const SectionReader& file);
    void link_pending();
    void link_batch(std::size_t count);
    LinkList prune(RowScorer& scorer, std::uint32_t row, std::vector<Near> candidates) const;
    std::vector<Near> scored(RowScorer& scorer, std::uint32_t row, const LinkList& others) const;
    // Links of the live rows, by their numbers after compaction; removed rows are bridged.
    std::vector<std::uint32_t> bridged(std::span<const std::uint64_t> rows,
                                       std::size_t linked) const;
    std::vector<std::uint32_t> hubs_of(std::size_t rows) const;
    bool worth_walking(std::uint64_t allowed, std::size_t effort) const noexcept;

    GraphSettings settings_;
    std::size_t width_;  // room for links per row: pruning is due when it is full
    mutable std::mutex linking_;  // one add, compact or save at a time; taken before writer_
    // Guarded by state_, like the rows:
    std::vector<std::uint32_t> links_;  // [linked_, width_]
    std::size_t linked_ = 0;            // rows with links: the first ones
    std::vector<std::uint32_t> hubs_;
};

}  // namespace sage
