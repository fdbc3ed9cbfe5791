#include "sage/id_table.hpp"

#include <random>
#include <unordered_map>

#include "check.hpp"

TEST(id_table_matches_unordered_map) {
    std::mt19937_64 random(1);
    sage::IdTable table;
    std::unordered_map<std::int64_t, std::uint64_t> expected;
    CHECK(table.find(0) == sage::IdTable::kMissing);
    for (std::uint64_t row = 0; row < 20000; ++row) {
        const auto id = static_cast<std::int64_t>(random() % 9000);
        table.set(id, row);
        expected[id] = row;
    }
    for (std::int64_t id = 0; id < 10000; ++id) {
        const auto found = expected.find(id);
        CHECK(table.find(id) == (found == expected.end() ? sage::IdTable::kMissing : found->second));
    }
    table.clear();
    CHECK(table.find(5) == sage::IdTable::kMissing);
    table.set(INT64_MAX - 1, 3);
    CHECK(table.find(INT64_MAX - 1) == 3);
}
