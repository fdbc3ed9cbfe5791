#include "sage/parallel.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sched.h>
#endif

namespace sage {

unsigned default_threads() {
    if (const char* wish = std::getenv("SAGE_NATIVE_THREADS"); wish != nullptr && *wish != '\0') {
        char* end = nullptr;
        const long value = std::strtol(wish, &end, 10);
        if (*end != '\0' || value < 1 || value > 4096) {
            throw std::invalid_argument("SAGE_NATIVE_THREADS is '" + std::string(wish) +
                                        "'; it must be a whole number from 1 to 4096");
        }
        return static_cast<unsigned>(value);
    }
#if defined(__linux__)
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof(mask), &mask) == 0) {
        return static_cast<unsigned>(std::max(1, CPU_COUNT(&mask)));
    }
#endif
    return std::max(1U, std::thread::hardware_concurrency());
}

}  // namespace sage
