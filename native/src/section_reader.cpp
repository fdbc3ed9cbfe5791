#include <algorithm>
#include <cstring>

#include "sage/crc32c.hpp"
#include "sage/error.hpp"
#include "sage/section_layout.hpp"

namespace sage {

void SectionReader::corrupt(std::string_view section, const std::string& detail) const {
    throw CorruptFile(file_->path(), std::string(section), detail);
}

SectionReader::SectionReader(std::shared_ptr<const FileBytes> file,
                             std::span<const std::string_view> known)
    : file_(std::move(file)) {
    const std::byte* data = file_->data();
    const std::size_t size = file_->size();
    FileHeader head{};
    if (size >= sizeof(kMagic) && std::memcmp(data, kMagic, sizeof(kMagic)) != 0) {
        corrupt("header", "this is no SAGE vector file (the first 8 bytes differ)");
    }
    if (size < kHeaderBytes) {
        corrupt("header", "the file has " + std::to_string(size) + " bytes, fewer than its header");
    }
    std::memcpy(&head, data, sizeof(head));
    if (head.version != kFormatVersion) {
        corrupt("header", "format version " + std::to_string(head.version) +
                              "; this build reads version " + std::to_string(kFormatVersion));
    }
    std::vector<std::byte> header(data, data + kHeaderBytes);
    FileHeader blank = head;
    blank.checksum = 0;
    std::memcpy(header.data(), &blank, sizeof(blank));
    if (crc32c(header.data(), header.size()) != head.checksum) {
        corrupt("header", "checksum differs");
    }
    if (head.header_bytes != kHeaderBytes || head.sections > kMaxSections || head.flags != 0) {
        corrupt("header", "fields are out of range");
    }
    if (head.file_bytes != size) {
        corrupt("header", "the file should have " + std::to_string(head.file_bytes) +
                              " bytes but has " + std::to_string(size));
    }
    std::uint64_t end = kHeaderBytes;
    for (std::uint32_t i = 0; i < head.sections; ++i) {
        SectionEntry raw{};
        std::memcpy(&raw, data + sizeof(FileHeader) + i * sizeof(SectionEntry), sizeof(raw));
        const std::string name(raw.name, ::strnlen(raw.name, kMaxSectionName));
        // Names go into messages: nothing but printable ASCII may pass.
        if (name.empty() ||
            !std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c < 0x7F; })) {
            corrupt("header", "the name of section " + std::to_string(i) + " is not printable");
        }
        if (raw.offset != aligned_offset(end) || raw.offset > size || raw.size > size - raw.offset) {
            corrupt(name, "offset or size is out of range");
        }
        if (has(name)) corrupt(name, "is there twice");
        const bool understood = std::find(known.begin(), known.end(), name) != known.end();
        if (!understood && (raw.flags & kRequired) != 0) {
            corrupt(name, "unknown to this build and marked as required; use a newer SAGE");
        }
        for (std::uint64_t at = end; at < raw.offset; ++at) {
            if (data[at] != std::byte{0}) corrupt(name, "the padding before it is not zero");
        }
        entries_.push_back({name, raw.offset, raw.size, raw.checksum});
        end = raw.offset + raw.size;
    }
    if (end != size) corrupt("header", "bytes after the last section");
}

const SectionReader::Entry& SectionReader::entry(std::string_view name) const {
    for (const Entry& candidate : entries_) {
        if (candidate.name == name) return candidate;
    }
    corrupt(name, "is missing");
}

bool SectionReader::has(std::string_view name) const noexcept {
    return std::any_of(entries_.begin(), entries_.end(),
                       [&](const Entry& e) { return e.name == name; });
}

std::span<const std::byte> SectionReader::unchecked(std::string_view name) const {
    const Entry& found = entry(name);
    return {file_->data() + found.offset, static_cast<std::size_t>(found.size)};
}

std::span<const std::byte> SectionReader::checked(std::string_view name) const {
    const auto bytes = unchecked(name);
    if (crc32c(bytes.data(), bytes.size()) != entry(name).checksum) {
        corrupt(name, "checksum differs");
    }
    return bytes;
}

std::vector<std::string> SectionReader::names() const {
    std::vector<std::string> all;
    for (const Entry& candidate : entries_) all.push_back(candidate.name);
    return all;
}

PieceChecks::PieceChecks(std::string path, std::string section, std::span<const std::byte> bytes,
                         std::span<const std::uint32_t> checksums)
    : path_(std::move(path)),
      section_(std::move(section)),
      bytes_(bytes),
      checksums_(checksums.begin(), checksums.end()),
      good_(std::make_unique<std::atomic<bool>[]>(checksums.size())) {
    if (checksums_.size() != (bytes_.size() + kPieceBytes - 1) / kPieceBytes) {
        throw CorruptFile(path_, section_, "its table of piece checksums has a wrong length");
    }
}

void PieceChecks::ensure(std::size_t begin, std::size_t end) const {
    if (begin >= end) return;
    for (std::size_t piece = begin / kPieceBytes; piece <= (end - 1) / kPieceBytes; ++piece) {
        if (!good_[piece].load(std::memory_order_acquire)) check(piece);
    }
}

void PieceChecks::check(std::size_t piece) const {
    const std::size_t begin = piece * kPieceBytes;
    const std::size_t size = std::min(kPieceBytes, bytes_.size() - begin);
    if (crc32c(bytes_.data() + begin, size) != checksums_[piece]) {
        throw CorruptFile(path_, section_,
                          "checksum differs in its bytes " + std::to_string(begin) + " to " +
                              std::to_string(begin + size - 1));
    }
    good_[piece].store(true, std::memory_order_release);
}

}  // namespace sage
