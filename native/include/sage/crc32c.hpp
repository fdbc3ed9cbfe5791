// CRC-32C (Castagnoli, RFC 3720), the checksum of every section of our files.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sage {

// Checksum of `size` bytes, continuing from `crc` (0 to start).
std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t crc = 0);

// The portable path, for tests against the hardware one.
std::uint32_t crc32c_portable(const void* data, std::size_t size, std::uint32_t crc = 0);

}  // namespace sage
