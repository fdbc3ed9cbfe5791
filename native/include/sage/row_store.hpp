// Rows in blocks that never move: readers go on while a writer fills the tail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "sage/section_file.hpp"
#include "sage/storage.hpp"

namespace sage {

struct RowBlock {
    // [capacity, ...] each; null: rows of this format have none.
    const float* vectors = nullptr;
    const std::uint8_t* codes = nullptr;
    const float* norms = nullptr;  // meaning is the index's (norm or its inverse)
    const float* steps = nullptr;
    const float* gaps = nullptr;   // at least |x - x'|, if vectors are kept
    std::uint64_t first = 0;         // number of the block's first row
    std::uint64_t rows = 0;          // published rows
    std::uint64_t capacity = 0;
    std::shared_ptr<void> owner;
    // Only for blocks in a mapped file.
    std::shared_ptr<const PieceChecks> vector_checks;
    std::shared_ptr<const PieceChecks> code_checks;

    bool mapped() const noexcept { return vector_checks || code_checks; }
    // Throws CorruptFile when these rows (counted inside the block) differ from their checksums.
    void ensure_vectors(std::uint64_t row, std::uint64_t count, const RowFormat& format) const {
        if (vector_checks == nullptr) return;
        vector_checks->ensure(row * format.vector_bytes(), (row + count) * format.vector_bytes());
    }
    void ensure_codes(std::uint64_t row, std::uint64_t count, const RowFormat& format) const {
        if (code_checks == nullptr) return;
        code_checks->ensure(row * format.code_bytes(), (row + count) * format.code_bytes());
    }
};

class RowStore {
public:
    explicit RowStore(const RowFormat& format) : format_(format) {}

    // Room that is reserved but not yet visible.
    struct Span {
        float* vectors;
        std::uint8_t* codes;
        float* norms;
        float* steps;
        float* gaps;
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
    // The stored vector of a row, checked: in place, or decoded into `room` ([dim]).
    // Throws CorruptFile.
    const float* vector(std::uint64_t row, float* room) const;
    const RowFormat& format() const noexcept { return format_; }
    // Bytes of allocated (not mapped) blocks.
    std::size_t memory_bytes() const noexcept;

private:
    RowFormat format_;
    std::uint64_t rows_ = 0;
    std::vector<RowBlock> blocks_;
};

}  // namespace sage
