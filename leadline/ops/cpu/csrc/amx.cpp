// AMX's tiles of bytes, for Sapphire Rapids and later: AVX-512 but for products of many rows with integer weights.
#include <atomic>

#include "kernels.h"
#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AVX512VNNI__) && defined(__linux__)
#define LEADLINE_AMX
#define LEADLINE_AVX512
#define LEADLINE_ISA amx
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "amx.h"
// It multiplies by what is above.
#include "rows.h"
#endif

namespace leadline {
namespace {

std::atomic<bool> emulated{false};

#if defined(LEADLINE_AMX)
// The processor's word (leaf 7), the system's (tiles are among what it saves), and its leave for this process, which it
// refuses where a signal stack is too small for tiles.
bool allowed() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25, kSaves = 1u << 27, kState = 3u << 17;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kTile | kInt8)) != (kTile | kInt8)) return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kSaves)) return false;
    unsigned low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & kState) != kState) return false;
    constexpr long kAskLeave = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kAskLeave, kTileData) == 0;
}

Kernels table() {
    Kernels k = *avx512_kernels();
    k.name = "amx", k.matmul = amx::matmul, k.swiglu = amx::swiglu;
    return k;
}
#endif

}  // namespace

void emulate_amx(bool on) { emulated = on; }

const Kernels* amx_kernels() {
#if defined(LEADLINE_AMX)
    if (!avx512_kernels()) return nullptr;
    static const Kernels kernels = table();
    static const bool here = allowed();
    return here || emulated ? &kernels : nullptr;
#else
    return nullptr;
#endif
}

}  // namespace leadline
