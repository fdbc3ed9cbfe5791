#include "sage/id_table.hpp"

#include <bit>

namespace sage {
namespace {

// Sequential ids are the common case; the multiply-xorshift mix (splitmix64) spreads them.
std::size_t hash_of(std::int64_t id) noexcept {
    auto x = static_cast<std::uint64_t>(id);
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ULL;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebULL;
    x ^= x >> 31;
    return static_cast<std::size_t>(x);
}

}  // namespace

void IdTable::reserve(std::size_t entries) {
    // At most 3/4 full keeps probe sequences short.
    const std::size_t wanted = std::bit_ceil(entries + entries / 3 + 16);
    if (wanted > slots_.size()) rehash(wanted);
}

void IdTable::rehash(std::size_t capacity) {
    std::vector<Slot> old(capacity, Slot{0, kMissing});
    old.swap(slots_);
    const std::size_t mask = slots_.size() - 1;
    for (const Slot& slot : old) {
        if (slot.row == kMissing) continue;
        std::size_t at = hash_of(slot.id) & mask;
        while (slots_[at].row != kMissing) at = (at + 1) & mask;
        slots_[at] = slot;
    }
}

void IdTable::set(std::int64_t id, std::uint64_t row) {
    if (slots_.empty() || used_ >= slots_.size() - slots_.size() / 4) reserve(2 * used_ + 16);
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = hash_of(id) & mask;
    while (slots_[at].row != kMissing && slots_[at].id != id) at = (at + 1) & mask;
    if (slots_[at].row == kMissing) ++used_;
    slots_[at] = {id, row};
}

std::uint64_t IdTable::find(std::int64_t id) const noexcept {
    if (slots_.empty()) return kMissing;
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t at = hash_of(id) & mask;; at = (at + 1) & mask) {
        if (slots_[at].row == kMissing || slots_[at].id == id) return slots_[at].row;
    }
}

void IdTable::clear() {
    slots_.clear();
    slots_.shrink_to_fit();
    used_ = 0;
}

}  // namespace sage
