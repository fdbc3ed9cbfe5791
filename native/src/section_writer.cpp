#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sage/crc32c.hpp"
#include "sage/error.hpp"
#include "sage/section_layout.hpp"

namespace sage {
namespace {

std::string folder_of(const std::string& path) {
    const auto slash = path.find_last_of('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

std::string leaf_of(const std::string& path) {
    const auto slash = path.find_last_of('/');
    return slash == std::string::npos ? path : path.substr(slash + 1);
}

}  // namespace

SectionWriter::SectionWriter(std::string path) : path_(std::move(path)) {
    if (leaf_of(path_).empty()) throw FileError(EISDIR, path_, "cannot write");
    temporary_ = folder_of(path_) + "/." + leaf_of(path_) + ".XXXXXX";
    fd_ = ::mkostemp(temporary_.data(), O_CLOEXEC);
    if (fd_ < 0) throw FileError(errno, path_, "cannot create a temporary file beside");
    // A constructor that throws runs no destructor: the first write is left to commit().
    offset_ = kHeaderBytes;
}

SectionWriter::~SectionWriter() {
    if (fd_ >= 0) ::close(fd_);
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void SectionWriter::write_all(const void* data, std::size_t size, std::uint64_t at) {
    const auto* p = static_cast<const char*>(data);
    while (size > 0) {
        const ssize_t done = ::pwrite(fd_, p, size, static_cast<off_t>(at));
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) throw FileError(errno, path_, "cannot write");
        p += done;
        at += static_cast<std::uint64_t>(done);
        size -= static_cast<std::size_t>(done);
    }
}

void SectionWriter::begin(std::string_view name, bool required) {
    end();
    if (name.empty() || name.size() > kMaxSectionName) {
        throw std::invalid_argument("section name '" + std::string(name) + "' must have 1 to " +
                                    std::to_string(kMaxSectionName) + " bytes");
    }
    if (entries_.size() >= kMaxSections) {
        throw std::invalid_argument("a file holds at most " + std::to_string(kMaxSections) +
                                    " sections");
    }
    offset_ = aligned_offset(offset_);  // the hole reads as zeros
    entries_.push_back({std::string(name), offset_, 0, 0, required});
}

void SectionWriter::append(const void* data, std::size_t size) {
    const auto* p = static_cast<const std::byte*>(data);
    Entry& entry = entries_.back();
    while (size > 0) {
        const std::size_t part = std::min(size, kPieceBytes - piece_fill_);
        entry.checksum = crc32c(p, part, entry.checksum);
        piece_checksum_ = crc32c(p, part, piece_checksum_);
        write_all(p, part, offset_);
        offset_ += part;
        entry.size += part;
        piece_fill_ += part;
        if (piece_fill_ == kPieceBytes) {
            pieces_.push_back(piece_checksum_);
            piece_checksum_ = 0;
            piece_fill_ = 0;
        }
        p += part;
        size -= part;
    }
}

std::vector<std::uint32_t> SectionWriter::end() {
    if (piece_fill_ > 0) pieces_.push_back(piece_checksum_);
    piece_checksum_ = 0;
    piece_fill_ = 0;
    return std::exchange(pieces_, {});
}

void SectionWriter::commit() {
    end();
    std::vector<std::byte> header(kHeaderBytes, std::byte{0});
    FileHeader head{};
    std::memcpy(head.magic, kMagic, sizeof(kMagic));
    head.version = kFormatVersion;
    head.header_bytes = kHeaderBytes;
    head.sections = static_cast<std::uint32_t>(entries_.size());
    head.file_bytes = offset_;
    std::memcpy(header.data(), &head, sizeof(head));
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        SectionEntry raw{};
        std::memcpy(raw.name, entries_[i].name.data(), entries_[i].name.size());
        raw.offset = entries_[i].offset;
        raw.size = entries_[i].size;
        raw.checksum = entries_[i].checksum;
        raw.flags = entries_[i].required ? kRequired : 0;
        std::memcpy(header.data() + sizeof(FileHeader) + i * sizeof(SectionEntry), &raw,
                    sizeof(raw));
    }
    head.checksum = crc32c(header.data(), header.size());
    std::memcpy(header.data(), &head, sizeof(head));
    write_all(header.data(), header.size(), 0);
    // A file whose last section is empty would end before its own recorded size.
    if (::ftruncate(fd_, static_cast<off_t>(offset_)) != 0) {
        throw FileError(errno, path_, "cannot size");
    }
    struct stat existing {};
    mode_t mode = 0644;
    if (::stat(path_.c_str(), &existing) == 0) mode = existing.st_mode & 07777;
    if (::fchmod(fd_, mode) != 0) throw FileError(errno, path_, "cannot set the mode of");
    if (::fsync(fd_) != 0) throw FileError(errno, path_, "cannot fsync");
    if (::close(std::exchange(fd_, -1)) != 0) throw FileError(errno, path_, "cannot close");
    if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
        throw FileError(errno, path_, "cannot rename the new file to");
    }
    temporary_.clear();
    const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) throw FileError(errno, path_, "cannot open the folder of");
    const int synced = ::fsync(folder);
    const int code = errno;
    ::close(folder);
    // Some file systems know no fsync of a folder (EINVAL); the rename is then as durable as it gets.
    if (synced != 0 && code != EINVAL) throw FileError(code, path_, "cannot fsync the folder of");
}

}  // namespace sage
