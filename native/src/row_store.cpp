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

struct Layout {
    std::size_t codes, norms, steps, gaps, bytes;

    Layout(std::uint64_t rows, const RowFormat& format) {
        const std::size_t terms = padded(rows * sizeof(float));
        codes = padded(rows * format.vector_bytes());
        norms = codes + padded(rows * format.code_bytes());
        steps = norms + terms;
        gaps = steps + (format.has_steps() ? terms : 0);
        bytes = gaps + (format.has_codes() ? terms : 0);
    }
};

RowBlock allocate(std::uint64_t rows, const RowFormat& format) {
    const Layout layout(rows, format);
    const std::size_t bytes = layout.bytes;
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
    auto* const at = static_cast<std::uint8_t*>(memory);
    const auto floats = [at](std::size_t offset) {
        return reinterpret_cast<const float*>(at + offset);
    };
    if (format.has_vectors()) block.vectors = floats(0);
    if (format.has_codes()) {
        block.codes = at + layout.codes;
        block.gaps = floats(layout.gaps);
    }
    if (format.has_steps()) block.steps = floats(layout.steps);
    block.norms = floats(layout.norms);
    block.capacity = rows;
    return block;
}

template <class T>
T* writable(const T* array, std::size_t offset) {
    // Blocks that stage() hands out are ours to write; mapped ones have no free capacity.
    return array == nullptr ? nullptr : const_cast<T*>(array) + offset;
}

RowStore::Span span_of(const RowBlock& block, std::uint64_t from, std::uint64_t rows,
                       const RowFormat& format) {
    return {writable(block.vectors, from * format.dim),
            writable(block.codes, from * format.code_bytes()),
            writable(block.norms, from),
            writable(block.steps, from),
            writable(block.gaps, from),
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
        staging.spans.push_back(span_of(tail, tail.rows, staging.into_tail, format_));
        left -= staging.into_tail;
    }
    const std::uint64_t largest =
        std::max<std::uint64_t>(kSmallestBlock, kBlockBytes / (format_.vector_bytes() + format_.code_bytes()));
    while (left > 0) {
        // Growth by doubling up to the block size keeps small indexes small.
        const std::uint64_t capacity =
            std::min(largest, std::max({kSmallestBlock, left, rows_ + rows - left}));
        staging.fresh.push_back(allocate(capacity, format_));
        RowBlock& block = staging.fresh.back();
        block.rows = std::min(left, capacity);
        staging.spans.push_back(span_of(block, 0, block.rows, format_));
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

const float* RowStore::vector(std::uint64_t row, float* room) const {
    const RowBlock& block = block_of(row);
    const std::uint64_t inside = row - block.first;
    if (block.vectors != nullptr) {
        block.ensure_vectors(inside, 1, format_);
        return block.vectors + inside * format_.dim;
    }
    block.ensure_codes(inside, 1, format_);
    const std::uint8_t* codes = block.codes + inside * format_.code_bytes();
    if (format_.storage == Storage::int8) {
        decode_int8(codes, block.steps[inside], format_.dim, room);
    } else {
        decode_bfloat16(reinterpret_cast<const std::uint16_t*>(codes), format_.dim, room);
    }
    return room;
}

std::size_t RowStore::memory_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const RowBlock& block : blocks_) {
        if (!block.mapped()) bytes += Layout(block.capacity, format_).bytes;
    }
    return bytes;
}

}  // namespace sage
