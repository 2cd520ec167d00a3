// Attention over rows of bfloat16 by VDPBF16PS: Cooper Lake, Sapphire Rapids, Zen 4 and later.
#include "kernels.h"
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define LEADLINE_AVX512
#define LEADLINE_BF16
#define LEADLINE_ISA avx512_dpbf16
#include "attention.h"
#endif

namespace leadline {

Segment bf16_segment() {
#if defined(LEADLINE_BF16)
    return __builtin_cpu_supports("avx512bf16") ? avx512_dpbf16::segment : nullptr;
#else
    return nullptr;
#endif
}

}  // namespace leadline
