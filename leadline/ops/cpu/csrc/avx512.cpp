// AVX-512 with VNNI: Ice Lake, Zen 4 and later.
#include "kernels.h"
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && \
    defined(__AVX512VNNI__)
#define LEADLINE_AVX512
#define LEADLINE_ISA avx512
#include "table.h"
#endif

namespace leadline {

const Kernels* avx512_kernels([[maybe_unused]] bool bf16) {
#if defined(LEADLINE_AVX512)
    static const Kernels plain = avx512::table("avx512");
    static const Kernels table = [] {
        Kernels k = plain;
        if (bf16_segment()) k.segment = bf16_segment();
        return k;
    }();
    const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
    return !here ? nullptr : bf16 ? &table : &plain;
#else
    return nullptr;
#endif
}

}  // namespace leadline
