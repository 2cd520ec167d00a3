// AVX2, FMA and F16C: x86 from 2013 on. Without them in the compiler this unit has no table.
#include "kernels.h"
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LEADLINE_AVX2
#define LEADLINE_ISA avx2
#include "table.h"
#endif

namespace leadline {

const Kernels* avx2_kernels() {
#if defined(LEADLINE_AVX2)
    static const Kernels table = avx2::table("avx2");
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &table : nullptr;
#else
    return nullptr;
#endif
}

}  // namespace leadline
