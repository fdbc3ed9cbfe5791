// Errors of the core library. The bindings turn them into Python exceptions; std::invalid_argument
// (a wrong argument) and std::bad_alloc keep their usual meaning.
#pragma once

#include <stdexcept>
#include <string>

namespace sage {

// A file is damaged, truncated or of an unknown version. `section` says which part.
class CorruptFile : public std::runtime_error {
public:
    CorruptFile(const std::string& path, const std::string& section, const std::string& detail)
        : std::runtime_error(path + ": section '" + section + "': " + detail), section_(section) {}
    const std::string& section() const noexcept { return section_; }

private:
    std::string section_;
};

// A system call on a file failed; `code` is errno.
class FileError : public std::runtime_error {
public:
    FileError(int code, const std::string& path, const std::string& what)
        : std::runtime_error(what + " " + path), code_(code), path_(path) {}
    int code() const noexcept { return code_; }
    const std::string& path() const noexcept { return path_; }

private:
    int code_;
    std::string path_;
};

}  // namespace sage
