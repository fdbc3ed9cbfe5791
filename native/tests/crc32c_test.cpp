#include "sage/crc32c.hpp"

#include <cstring>
#include <vector>

#include "check.hpp"

// RFC 3720, B.4.
TEST(crc32c_known_answers) {
    CHECK(sage::crc32c("123456789", 9) == 0xE3069283U);
    CHECK(sage::crc32c(nullptr, 0) == 0);
    std::vector<unsigned char> bytes(32, 0x00);
    CHECK(sage::crc32c(bytes.data(), 32) == 0x8A9136AAU);
    bytes.assign(32, 0xFF);
    CHECK(sage::crc32c(bytes.data(), 32) == 0x62A8AB43U);
    for (unsigned char i = 0; i < 32; ++i) bytes[i] = i;
    CHECK(sage::crc32c(bytes.data(), 32) == 0x46DD794EU);
}

TEST(crc32c_portable_and_hardware_agree) {
    std::vector<unsigned char> bytes(517);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i * 131 + 7);
    for (std::size_t begin = 0; begin < 9; ++begin) {
        for (std::size_t size = 0; begin + size <= bytes.size(); ++size) {
            CHECK(sage::crc32c(bytes.data() + begin, size) ==
                  sage::crc32c_portable(bytes.data() + begin, size));
        }
    }
}

TEST(crc32c_continues) {
    const char* text = "the quick brown fox";
    const std::size_t size = std::strlen(text);
    for (std::size_t cut = 0; cut <= size; ++cut) {
        const auto first = sage::crc32c(text, cut);
        CHECK(sage::crc32c(text + cut, size - cut, first) == sage::crc32c(text, size));
    }
}
