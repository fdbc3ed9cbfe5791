// External id -> row: open addressing with linear probing, 16 bytes per slot.
//
// Entries are never erased: a removed id keeps its entry, and the caller checks whether the row
// still lives. Setting an id again moves it to the new row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sage {

class IdTable {
public:
    static constexpr std::uint64_t kMissing = ~std::uint64_t{0};

    void reserve(std::size_t entries);
    void set(std::int64_t id, std::uint64_t row);
    std::uint64_t find(std::int64_t id) const noexcept;
    void clear();
    std::size_t memory_bytes() const noexcept { return slots_.capacity() * sizeof(Slot); }

private:
    struct Slot {
        std::int64_t id;
        std::uint64_t row;
    };

    void rehash(std::size_t capacity);

    std::vector<Slot> slots_;  // size is a power of two; row == kMissing marks an empty slot
    std::size_t used_ = 0;
};

}  // namespace sage
