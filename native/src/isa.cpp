#include "sage/isa.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "sage/kernels.hpp"

namespace sage {

const char* tier_name(Tier tier) {
    switch (tier) {
        case Tier::avx512:
            return "avx512";
        case Tier::avx2:
            return "avx2";
        case Tier::scalar:
            break;
    }
    return "scalar";
}

std::vector<Tier> available_tiers() {
    std::vector<Tier> tiers{Tier::scalar};
#if defined(__x86_64__)
    // These checks include the operating system's support for the wider registers (XCR0).
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        tiers.push_back(Tier::avx2);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
            tiers.push_back(Tier::avx512);
        }
    }
#endif
    return tiers;
}

Tier chosen_tier() {
    const auto tiers = available_tiers();
    const char* forced = std::getenv("SAGE_NATIVE_ISA");
    if (forced == nullptr || *forced == '\0') return tiers.back();
    std::string names;
    for (const Tier tier : tiers) {
        if (std::string(forced) == tier_name(tier)) return tier;
        names += (names.empty() ? "" : ", ") + std::string(tier_name(tier));
    }
    throw std::invalid_argument("SAGE_NATIVE_ISA is '" + std::string(forced) +
                                "'; this machine can run: " + names);
}

const Kernels& kernels_of(Tier tier) {
#if defined(__x86_64__)
    if (tier == Tier::avx512) return avx512_kernels();
    if (tier == Tier::avx2) return avx2_kernels();
#endif
    (void)tier;
    return scalar_kernels();
}

}  // namespace sage
