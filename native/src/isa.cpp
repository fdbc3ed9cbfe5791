#include "sage/isa.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "sage/kernels.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

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

namespace {

bool is_set(const char* variable) {
    const char* said = std::getenv(variable);
    return said != nullptr && std::string(said) == "1";
}

bool without_vnni() { return is_set("SAGE_NATIVE_NO_VNNI"); }

}  // namespace

bool has_avx_vnni() {
#if defined(__x86_64__)
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    // Compilers know this feature's name only lately; it needs no more of the system than AVX2.
    return !without_vnni() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 &&
           (a & (1U << 4)) != 0 && __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

bool has_avx512_vnni() {
#if defined(__x86_64__)
    return !without_vnni() && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    constexpr unsigned kTiles = 1U << 24;
    constexpr unsigned kTilesOfBytes = 1U << 25;
    if (is_set("SAGE_NATIVE_NO_AMX") || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 ||
        (d & kTiles) == 0 || (d & kTilesOfBytes) == 0) {
        return false;
    }
    // Tiles are so large that Linux keeps them for threads of processes that asked; containers
    // and old kernels may refuse.
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;
    return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
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
