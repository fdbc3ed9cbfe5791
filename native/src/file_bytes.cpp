#include "sage/file_bytes.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <new>

#include "sage/error.hpp"

namespace sage {
namespace {

class Descriptor {
public:
    explicit Descriptor(int fd) : fd_(fd) {}
    ~Descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const noexcept { return fd_; }

private:
    int fd_;
};

}  // namespace

std::shared_ptr<const FileBytes> FileBytes::open(const std::string& path, bool map) {
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() < 0) throw FileError(errno, path, "cannot open");
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) throw FileError(errno, path, "cannot stat");
    if (S_ISDIR(status.st_mode)) throw FileError(EISDIR, path, "cannot open");

    std::shared_ptr<FileBytes> bytes(new FileBytes());
    bytes->path_ = path;
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size == 0) return bytes;
    if (map) {
        void* at = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
        if (at == MAP_FAILED) throw FileError(errno, path, "cannot map");
        bytes->data_ = static_cast<std::byte*>(at);
        bytes->size_ = size;
        bytes->mapped_ = true;
        return bytes;
    }
    void* memory = nullptr;
    if (::posix_memalign(&memory, 64, size) != 0) throw std::bad_alloc();
    bytes->data_ = static_cast<std::byte*>(memory);
    while (bytes->size_ < size) {
        const ssize_t got = ::read(file.get(), bytes->data_ + bytes->size_, size - bytes->size_);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) throw FileError(errno, path, "cannot read");
        if (got == 0) break;  // cut short meanwhile: the header check reports it
        bytes->size_ += static_cast<std::size_t>(got);
    }
    return bytes;
}

FileBytes::~FileBytes() {
    if (mapped_) {
        ::munmap(data_, size_);
    } else {
        std::free(data_);
    }
}

}  // namespace sage
