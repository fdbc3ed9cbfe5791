// float32 rows in blocks that never move: readers go on while a writer fills the tail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "sage/section_file.hpp"

namespace sage {

struct RowBlock {
    const float* vectors = nullptr;  // [capacity, dim]
    const float* norms = nullptr;    // [capacity]; meaning is the index's (norm or its inverse)
    std::uint64_t first = 0;         // number of the block's first row
    std::uint64_t rows = 0;          // published rows
    std::uint64_t capacity = 0;
    std::shared_ptr<void> owner;
    std::shared_ptr<const PieceChecks> checks;  // only for blocks in a mapped file
};

class RowStore {
public:
    explicit RowStore(std::size_t dim) : dim_(dim) {}

    // Room that is reserved but not yet visible.
    struct Span {
        float* vectors;
        float* norms;
        std::uint64_t rows;
    };
    struct Staging {
        std::vector<Span> spans;
        std::vector<RowBlock> fresh;
        std::uint64_t into_tail = 0;
        std::uint64_t rows = 0;
    };

    // Only one staging at a time; readers may run beside it. Throws std::bad_alloc.
    Staging stage(std::uint64_t rows) const;
    // Makes staged rows visible; no reader may run meanwhile.
    void publish(Staging&& staging);
    // A finished, immutable block at the front of an empty store.
    void attach(RowBlock block);

    const std::vector<RowBlock>& blocks() const noexcept { return blocks_; }
    std::uint64_t rows() const noexcept { return rows_; }
    const RowBlock& block_of(std::uint64_t row) const noexcept;
    const float* vector(std::uint64_t row) const noexcept {
        const RowBlock& block = block_of(row);
        return block.vectors + (row - block.first) * dim_;
    }
    // Bytes of allocated (not mapped) blocks.
    std::size_t memory_bytes() const noexcept;

private:
    std::size_t dim_;
    std::uint64_t rows_ = 0;
    std::vector<RowBlock> blocks_;
};

}  // namespace sage
