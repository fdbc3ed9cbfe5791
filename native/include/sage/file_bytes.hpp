// The bytes of a file, mapped or read into memory.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace sage {

class FileBytes {
public:
    // Throws FileError. With `map` the file must not be cut short by others while it is in use.
    static std::shared_ptr<const FileBytes> open(const std::string& path, bool map);

    ~FileBytes();
    FileBytes(const FileBytes&) = delete;
    FileBytes& operator=(const FileBytes&) = delete;

    const std::byte* data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    bool mapped() const noexcept { return mapped_; }
    const std::string& path() const noexcept { return path_; }

private:
    FileBytes() = default;

    std::string path_;
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
    bool mapped_ = false;
};

}  // namespace sage
