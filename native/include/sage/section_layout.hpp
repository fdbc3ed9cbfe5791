// The bytes of a section file's header, shared by its writer and reader. Little endian.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "sage/section_file.hpp"

namespace sage {

static_assert(std::endian::native == std::endian::little,
              "files are little endian; a big endian port must swap here");

inline constexpr char kMagic[8] = {'S', 'A', 'G', 'E', 'V', 'E', 'C', '\0'};
inline constexpr std::uint32_t kRequired = 1;
inline constexpr std::size_t kMaxSectionName = 24;

struct FileHeader {
    char magic[8];
    std::uint32_t version;
    std::uint32_t header_bytes;
    std::uint32_t sections;
    std::uint32_t flags;
    std::uint64_t file_bytes;
    std::uint64_t reserved[3];
    std::uint32_t reserved_word;
    std::uint32_t checksum;  // CRC-32C of the whole header with this field 0
};
static_assert(sizeof(FileHeader) == 64 && std::is_trivially_copyable_v<FileHeader>);

struct SectionEntry {
    char name[kMaxSectionName];
    std::uint64_t offset;
    std::uint64_t size;
    std::uint32_t checksum;
    std::uint32_t flags;
    std::uint64_t reserved[2];
};
static_assert(sizeof(SectionEntry) == 64 && std::is_trivially_copyable_v<SectionEntry>);

inline constexpr std::size_t kMaxSections =
    (kHeaderBytes - sizeof(FileHeader)) / sizeof(SectionEntry);

inline constexpr std::uint64_t aligned_offset(std::uint64_t offset) {
    return (offset + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
}

}  // namespace sage
