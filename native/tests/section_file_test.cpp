#include "sage/section_file.hpp"

#include <array>
#include <cstring>
#include <fstream>
#include <iterator>

#include "check.hpp"
#include "sage/error.hpp"
#include "temporary_folder.hpp"

namespace {

constexpr std::array<std::string_view, 2> kKnown = {"a", "b"};

std::vector<char> read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const std::string& path, const std::vector<char>& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<long>(bytes.size()));
}

void write_sample(const std::string& path) {
    sage::SectionWriter writer(path);
    writer.begin("a");
    writer.append("hello", 5);
    writer.begin("b");
    writer.append("wor", 3);
    writer.append("ld", 2);
    writer.begin("later", false);
    writer.commit();
}

// Reads everything; returns whether all checks passed.
bool reads(const std::string& path) {
    try {
        const sage::SectionReader reader(sage::FileBytes::open(path, true), kKnown);
        for (const auto& name : reader.names()) reader.checked(name);
        return reader.names().size() == 3;
    } catch (const sage::CorruptFile&) {
        return false;
    }
}

}  // namespace

TEST(sections_come_back) {
    const TemporaryFolder folder;
    const std::string path = folder.file("x");
    write_sample(path);
    for (const bool map : {true, false}) {
        const sage::SectionReader reader(sage::FileBytes::open(path, map), kKnown);
        const auto b = reader.checked("b");
        CHECK(b.size() == 5 && std::memcmp(b.data(), "world", 5) == 0);
        CHECK(reader.checked("later").empty());
        CHECK(!reader.has("c"));
        CHECK_THROWS(sage::CorruptFile, reader.checked("c"));
    }
}

TEST(cuts_and_flipped_bits_are_noticed) {
    const TemporaryFolder folder;
    const std::string path = folder.file("x");
    write_sample(path);
    const std::vector<char> good = read_file(path);
    CHECK(reads(path));
    // The header's unused part is all alike: a sample of it suffices.
    const auto next = [](std::size_t at) { return at > 400 && at < 4000 ? at + 61 : at + 1; };
    for (std::size_t size = 0; size < good.size(); size = next(size)) {
        write_file(path, {good.begin(), good.begin() + static_cast<long>(size)});
        CHECK(!reads(path));
    }
    for (std::size_t at = 0; at < good.size(); at = next(at)) {
        std::vector<char> bad = good;
        bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
        write_file(path, bad);
        CHECK(!reads(path));
    }
    std::vector<char> longer = good;
    longer.push_back('\0');
    write_file(path, longer);
    CHECK(!reads(path));
}

TEST(unknown_sections_are_refused_only_if_required) {
    const TemporaryFolder folder;
    const std::string path = folder.file("x");
    sage::SectionWriter writer(path);
    writer.begin("new");
    writer.commit();
    CHECK_THROWS(sage::CorruptFile,
                 sage::SectionReader(sage::FileBytes::open(path, true), kKnown));
}

TEST(without_commit_nothing_changes) {
    const TemporaryFolder folder;
    const std::string path = folder.file("x");
    write_sample(path);
    const auto before = read_file(path);
    {
        sage::SectionWriter writer(path);
        writer.begin("a");
        writer.append("other", 5);
    }
    CHECK(read_file(path) == before);
    CHECK(folder.entries() == 1);
    CHECK_THROWS(sage::FileError, sage::SectionWriter(folder.file("no/such/folder")));
    CHECK_THROWS(sage::FileError, sage::FileBytes::open(folder.file("missing"), true));
    CHECK_THROWS(sage::FileError, sage::FileBytes::open(folder.file(""), true));
}

TEST(pieces_are_checked_before_use) {
    std::vector<std::byte> bytes(sage::kPieceBytes * 2 + 10, std::byte{1});
    const TemporaryFolder folder;
    sage::SectionWriter writer(folder.file("x"));
    writer.begin("a");
    writer.append(bytes.data(), 100);
    writer.append(bytes.data() + 100, bytes.size() - 100);
    const auto pieces = writer.end();
    CHECK(pieces.size() == 3);
    bytes[sage::kPieceBytes + 5] = std::byte{9};
    const sage::PieceChecks checks("x", "a", bytes, pieces);
    checks.ensure(0, sage::kPieceBytes);
    checks.ensure(2 * sage::kPieceBytes, bytes.size());
    CHECK_THROWS(sage::CorruptFile, checks.ensure(sage::kPieceBytes - 1, sage::kPieceBytes + 1));
    CHECK_THROWS(sage::CorruptFile, checks.ensure_all());
    const std::vector<std::uint32_t> fewer(pieces.begin(), pieces.end() - 1);
    CHECK_THROWS(sage::CorruptFile, sage::PieceChecks("x", "a", bytes, fewer));
}
