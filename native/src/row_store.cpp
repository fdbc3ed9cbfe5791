#include "sage/row_store.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sage {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kBlockBytes = std::size_t{16} << 20;
constexpr std::uint64_t kSmallestBlock = 64;  // rows

std::size_t padded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

RowBlock allocate(std::uint64_t rows, std::size_t dim) {
    const std::size_t vector_bytes = padded(rows * dim * sizeof(float));
    const std::size_t bytes = vector_bytes + padded(rows * sizeof(float));
    void* memory = nullptr;
    if (::posix_memalign(&memory, bytes >= kHugePage ? kHugePage : 64, bytes) != 0) {
        throw std::bad_alloc();
    }
#if defined(__linux__)
    // Huge pages spare the scan most TLB misses; where the kernel refuses, nothing is lost.
    if (bytes >= kHugePage) ::madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    RowBlock block;
    block.owner = std::shared_ptr<void>(memory, [](void* p) { std::free(p); });
    block.vectors = static_cast<const float*>(memory);
    block.norms = reinterpret_cast<const float*>(static_cast<std::byte*>(memory) + vector_bytes);
    block.capacity = rows;
    return block;
}

RowStore::Span span_of(const RowBlock& block, std::uint64_t from, std::uint64_t rows,
                       std::size_t dim) {
    // Blocks that stage() hands out are ours to write; mapped ones have no free capacity.
    return {const_cast<float*>(block.vectors) + from * dim, const_cast<float*>(block.norms) + from,
            rows};
}

}  // namespace

RowStore::Staging RowStore::stage(std::uint64_t rows) const {
    Staging staging;
    staging.rows = rows;
    std::uint64_t left = rows;
    if (!blocks_.empty() && blocks_.back().capacity > blocks_.back().rows) {
        const RowBlock& tail = blocks_.back();
        staging.into_tail = std::min(left, tail.capacity - tail.rows);
        staging.spans.push_back(span_of(tail, tail.rows, staging.into_tail, dim_));
        left -= staging.into_tail;
    }
    const std::uint64_t largest =
        std::max<std::uint64_t>(kSmallestBlock, kBlockBytes / (dim_ * sizeof(float)));
    while (left > 0) {
        // Growth by doubling up to the block size keeps small indexes small.
        const std::uint64_t capacity =
            std::min(largest, std::max({kSmallestBlock, left, rows_ + rows - left}));
        staging.fresh.push_back(allocate(capacity, dim_));
        RowBlock& block = staging.fresh.back();
        block.rows = std::min(left, capacity);
        staging.spans.push_back(span_of(block, 0, block.rows, dim_));
        left -= block.rows;
    }
    return staging;
}

void RowStore::publish(Staging&& staging) {
    blocks_.reserve(blocks_.size() + staging.fresh.size());  // the only step that may throw
    if (staging.into_tail > 0) blocks_.back().rows += staging.into_tail;
    std::uint64_t first = rows_ + staging.into_tail;
    for (RowBlock& block : staging.fresh) {
        block.first = first;
        first += block.rows;
        blocks_.push_back(std::move(block));
    }
    rows_ = first;
}

void RowStore::attach(RowBlock block) {
    if (block.rows == 0) return;
    block.first = 0;
    block.capacity = block.rows;
    rows_ = block.rows;
    blocks_.push_back(std::move(block));
}

const RowBlock& RowStore::block_of(std::uint64_t row) const noexcept {
    const auto after =
        std::upper_bound(blocks_.begin(), blocks_.end(), row,
                         [](std::uint64_t r, const RowBlock& block) { return r < block.first; });
    return *(after - 1);
}

std::size_t RowStore::memory_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const RowBlock& block : blocks_) {
        if (block.checks) continue;
        bytes += padded(block.capacity * dim_ * sizeof(float)) +
                 padded(block.capacity * sizeof(float));
    }
    return bytes;
}

}  // namespace sage
