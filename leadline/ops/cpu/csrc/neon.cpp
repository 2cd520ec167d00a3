// NEON with dot products of bytes: Apple silicon, Graviton 2, Raspberry Pi 5 and later.
#include "kernels.h"
#if defined(__ARM_FEATURE_DOTPROD)
#define LEADLINE_NEON
#define LEADLINE_ISA neon
#include "table.h"
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

namespace leadline {

const Kernels* neon_kernels() {
#if defined(LEADLINE_NEON)
    static const Kernels table = neon::table("neon");
#if defined(__linux__)
    constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
    return getauxval(AT_HWCAP) & kDotProducts ? &table : nullptr;
#else
    return &table;  // every Apple processor that runs a 64-bit macOS on Arm
#endif
#else
    return nullptr;
#endif
}

}  // namespace leadline
