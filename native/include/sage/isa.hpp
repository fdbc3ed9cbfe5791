// Instruction set tiers and the choice among them at run time.
#pragma once

#include <string>
#include <vector>

namespace sage {

enum class Tier { scalar, avx2, avx512 };

const char* tier_name(Tier tier);

// The tiers that this CPU and operating system can run, slowest first.
std::vector<Tier> available_tiers();

// Whether there are instructions for products of bytes, beside those of the tier. The environment
// variable SAGE_NATIVE_NO_VNNI=1 says no, to test the way without them.
bool has_avx_vnni();
bool has_avx512_vnni();
// Whether there are tiles of bytes and the system lets this process use them; asks it. The
// environment variable SAGE_NATIVE_NO_AMX=1 says no.
bool has_amx();

// The best available tier, or the one that the environment variable SAGE_NATIVE_ISA forces.
// Throws std::invalid_argument when the variable names an unknown or unavailable tier.
Tier chosen_tier();

}  // namespace sage
