// The container of our files: a checked header, a table of named sections, a checksum each.
// docs/native-format.md describes the bytes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sage/file_bytes.hpp"

namespace sage {

inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::size_t kHeaderBytes = 4096;
inline constexpr std::size_t kSectionAlignment = 64;
inline constexpr std::size_t kPieceBytes = std::size_t{1} << 20;

// Writes to a temporary file beside `path`; commit() makes it durable and puts it in place.
// Without commit() the temporary file goes and `path` stays as it was. Throws FileError.
class SectionWriter {
public:
    explicit SectionWriter(std::string path);
    ~SectionWriter();
    SectionWriter(const SectionWriter&) = delete;
    SectionWriter& operator=(const SectionWriter&) = delete;

    // A reader that does not know a required section refuses the file.
    void begin(std::string_view name, bool required = true);
    void append(const void* data, std::size_t size);
    // Ends the section; returns the checksums of each kPieceBytes of it.
    std::vector<std::uint32_t> end();
    void commit();

private:
    struct Entry {
        std::string name;
        std::uint64_t offset;
        std::uint64_t size;
        std::uint32_t checksum;
        bool required;
    };

    void write_all(const void* data, std::size_t size, std::uint64_t at);

    std::string path_;
    std::string temporary_;
    int fd_ = -1;
    std::uint64_t offset_ = 0;
    std::uint32_t piece_checksum_ = 0;
    std::size_t piece_fill_ = 0;
    std::vector<std::uint32_t> pieces_;
    std::vector<Entry> entries_;
};

// Checks header, table, sizes and padding at construction; each section's checksum when asked.
class SectionReader {
public:
    // `known`: the section names that the caller understands. Throws CorruptFile.
    SectionReader(std::shared_ptr<const FileBytes> file, std::span<const std::string_view> known);

    bool has(std::string_view name) const noexcept;
    // The bytes of a section after its checksum was compared. Throws CorruptFile.
    std::span<const std::byte> checked(std::string_view name) const;
    // The bytes as they are; the caller checks them (PieceChecks) before use.
    std::span<const std::byte> unchecked(std::string_view name) const;
    // Names of all sections.
    std::vector<std::string> names() const;

    const std::shared_ptr<const FileBytes>& file() const noexcept { return file_; }

private:
    struct Entry {
        std::string name;
        std::uint64_t offset;
        std::uint64_t size;
        std::uint32_t checksum;
    };

    const Entry& entry(std::string_view name) const;
    [[noreturn]] void corrupt(std::string_view section, const std::string& detail) const;

    std::shared_ptr<const FileBytes> file_;
    std::vector<Entry> entries_;
};

// Checks a big section piece by piece, each before its first use; safe from many threads.
class PieceChecks {
public:
    PieceChecks(std::string path, std::string section, std::span<const std::byte> bytes,
                std::span<const std::uint32_t> checksums);

    // Throws CorruptFile when a piece that overlaps [begin, end) differs from its checksum.
    void ensure(std::size_t begin, std::size_t end) const;
    void ensure_all() const { ensure(0, bytes_.size()); }

private:
    void check(std::size_t piece) const;

    std::string path_;
    std::string section_;
    std::span<const std::byte> bytes_;
    std::vector<std::uint32_t> checksums_;
    mutable std::unique_ptr<std::atomic<bool>[]> good_;
};

}  // namespace sage
