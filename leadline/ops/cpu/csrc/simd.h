// Sixteen lanes on every machine: one register of AVX-512, two of AVX2, four of NEON, an array without any.
//
// The kernels are written once against these types and compiled once an instruction set. Every operation gives the same
// bits on all of them: float operations are single IEEE operations (fma included) and the order of the lanes in a sum is
// fixed here, so a result depends neither on the machine's vectors nor on their width.
//
//     Floats, Ints   sixteen lanes of 32 bits
//     Bytes          64 unsigned bytes: four columns of sixteen outputs
//     Quad           four signed bytes, for every output
#pragma once

#if defined(LEADLINE_AVX512)
#include "simd/avx512.h"
#elif defined(LEADLINE_AVX2)
#include "simd/avx2.h"
#elif defined(LEADLINE_NEON)
#include "simd/neon.h"
#else
#include "simd/scalar.h"
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace leadline {
namespace LEADLINE_ISA {

#if defined(LEADLINE_AVX512) || defined(LEADLINE_AVX2)
// Halves onto halves, the same tree everywhere.
inline float sum_lanes(Floats a) {
    __m256 low, high;
    to_halves(a, low, high);
    __m256 x = _mm256_add_ps(low, high);
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
#endif
#if !defined(LEADLINE_AVX512)
// Sixteen sums at once: of acc[i][t], at out[4 i + t].
inline void sum_lanes(const Floats (&acc)[4][4], Floats& out) {
    float sums[16];
    for (int i = 0; i < 16; ++i) sums[i] = sum_lanes(acc[i / 4][i % 4]);
    out = load(sums);
}
#endif
inline float max_lanes(Floats a) {
    float x[16];
    store(x, a);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
    return x[0];
}
#if !defined(LEADLINE_AVX512) && !defined(LEADLINE_NEON)
inline uint32_t max_lanes_unsigned(Ints a) {
    int32_t x[16];
    store_ints(x, a);
    uint32_t most = 0;
    for (int32_t each : x) most = static_cast<uint32_t>(each) > most ? static_cast<uint32_t>(each) : most;
    return most;
}
inline int32_t sum_lanes(Ints a) {
    int32_t x[16], sum = 0;
    store_ints(x, a);
    for (int32_t each : x) sum += each;
    return sum;
}
#endif

// The first n of sixteen lanes; the others are zero, or are not written.
inline Floats load_some(const float* p, int n) {
    float x[16] = {};
    std::memcpy(x, p, sizeof(float) * static_cast<size_t>(n));
    return load(x);
}
inline void store_some(float* p, Floats a, int n) {
    float x[16];
    store(x, a);
    std::memcpy(p, x, sizeof(float) * static_cast<size_t>(n));
}

template <class Function>
inline void each_vector(int width, Function f) {
    int i = 0;
    for (; i + 16 <= width; i += 16) f(i, 16);
    if (i < width) f(i, width - i);
}
inline Floats load_n(const float* p, int n) { return n == 16 ? load(p) : load_some(p, n); }
inline void store_n(float* p, Floats a, int n) {
    if (n == 16)
        store(p, a);
    else
        store_some(p, a, n);
}

// e^x in single precision, within two units in the last place: x = n ln 2 + r, a polynomial of r, times 2^n. Between
// e^-87 and e^88; NaN stays NaN, since the instructions give back their second operand then.
inline Floats exp(Floats x) {
    x = min(set1(88.0f), max(set1(-87.0f), x));
    Ints n = to_ints(x * set1(1.44269504f));
    Floats r = fma(to_floats(n), set1(-0.693359375f), x);
    r = fma(to_floats(n), set1(2.12194440e-4f), r);
    Floats p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = fma(p, r * r, r + set1(1.0f));
    return p * floats(shift_left(n + set1i(127), 23));
}

// ---- products of bfloat16 ------------------------------------------------------------------------------------------
// As VDPBF16PS has them: of a lane's two neighbours the odd one, then the even one, each by one float32 multiply-add. What
// is below 2^-126 is zero going in and coming out, which `DenormalsAreZero` sees to where there is no such instruction.

#if !defined(LEADLINE_BF16)
// VCVTNEPS2BF16: to nearest, ties to even; NaN stays NaN. The multiply-add, which no compiler takes for
// nothing, makes zero of what is below 2^-126 under `DenormalsAreZero`, and NaN quiet; the bound keeps NaN from
// becoming the other sign's zero.
inline void store_rounded(uint16_t* p, Floats a) {
    const Ints b = bits(fma(a, set1(1.0f), set1(-0.0f))), size = min_unsigned(b & set1i(0x7fffffff), set1i(0x7fff0000));
    const Ints rounded = size + set1i(0x7fff) + (shift_right(size, 16) & set1i(1));
    store_words(p, shift_right((b & set1i(INT32_MIN)) + rounded, 16));
}
#endif

// While one lives, this thread's numbers below 2^-126 are zero.
class DenormalsAreZero {
#if defined(__x86_64__)
    static unsigned mode() { return _mm_getcsr(); }
    static void set(unsigned mode) { _mm_setcsr(mode); }
    static constexpr unsigned kFlush = 0x8040;
#elif defined(__aarch64__)
    static uint64_t mode() {
        uint64_t bits;
        asm volatile("mrs %0, fpcr" : "=r"(bits));
        return bits;
    }
    static void set(uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode)); }
    static constexpr uint64_t kFlush = 1u << 24;
#else
    static int mode() { return 0; }
    static void set(int) {}
    static constexpr int kFlush = 0;
#endif

  public:
    DenormalsAreZero() : before_(mode()) { set(before_ | kFlush); }
    ~DenormalsAreZero() { set(before_); }
    DenormalsAreZero(const DenormalsAreZero&) = delete;
    DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

  private:
    const decltype(mode()) before_;
};

}  // namespace LEADLINE_ISA
}  // namespace leadline
