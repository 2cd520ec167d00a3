// AVX2 with AVX-VNNI: laptops and desktops from 2021 on that have no AVX-512 (Alder Lake and later).
#include "kernels.h"
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__AVXVNNI__)
#define LEADLINE_AVX2
#define LEADLINE_AVXVNNI
#define LEADLINE_ISA avxvnni
#include <cpuid.h>

#include "table.h"
#endif

namespace leadline {

const Kernels* avxvnni_kernels() {
#if defined(LEADLINE_AVXVNNI)
    static const Kernels table = avxvnni::table("avxvnni");
    unsigned a = 0, b = 0, c = 0, d = 0;  // leaf 7.1: not every compiler knows this name
    const bool here = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
    return here && avx2_kernels() ? &table : nullptr;
#else
    return nullptr;
#endif
}

}  // namespace leadline
