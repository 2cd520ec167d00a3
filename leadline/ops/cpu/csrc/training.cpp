// AVX-512 with BF16: Zen 4, Sapphire Rapids and later. Other machines train on PyTorch.
#include "training.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512BF16__)
#define LEADLINE_AVX512
#define LEADLINE_ISA avx512_bf16
#include "training_attention.h"
#include "training_experts.h"
#include "training_norm.h"
#include "training_rows.h"
#endif

namespace leadline {

const TrainingKernels* avx512_bf16_kernels() {
#if defined(LEADLINE_AVX512)
    static const TrainingKernels table{avx512_bf16::attention, avx512_bf16::attention_backward, avx512_bf16::experts,
                                       avx512_bf16::experts_backward, avx512_bf16::norm, avx512_bf16::norm_backward,
                                       avx512_bf16::softmax_nll};
    const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bf16");
    return here ? &table : nullptr;
#else
    return nullptr;
#endif
}

}  // namespace leadline
