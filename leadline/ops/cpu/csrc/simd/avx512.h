// Sixteen lanes in one register of AVX-512. Included by simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace leadline {
namespace LEADLINE_ISA {

struct Floats {
    __m512 v;
};
struct Ints {
    __m512i v;
};
struct Bytes {  // 64 unsigned bytes: four columns of sixteen outputs
    __m512i v;
};
struct Quad {  // four signed bytes, for every output
    __m512i v;
};

inline Floats zero() { return {_mm512_setzero_ps()}; }
inline Floats set1(float x) { return {_mm512_set1_ps(x)}; }
inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Floats load_bf16(const uint16_t* p) {
    __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
// Two columns of sixteen outputs, side by side in each lane.
inline void load_bf16_pair(const uint16_t* p, Floats& even, Floats& odd) {
    __m512i x = _mm512_loadu_si512(p);
    even.v = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    odd.v = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
inline Ints bits(Floats a) { return {_mm512_castps_si512(a.v)}; }
inline Floats floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
inline Ints set1i(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Ints shift_left(Ints a, int n) { return {_mm512_slli_epi32(a.v, n)}; }
inline Ints shift_right(Ints a, int n) { return {_mm512_srli_epi32(a.v, n)}; }
inline Ints max_unsigned(Ints a, Ints b) { return {_mm512_max_epu32(a.v, b.v)}; }
inline Ints min_unsigned(Ints a, Ints b) { return {_mm512_min_epu32(a.v, b.v)}; }
inline Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Ints to_ints(Floats a) { return {_mm512_cvtps_epi32(a.v)}; }  // nearest, ties to even
inline void store_bytes(int8_t* p, Ints a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
inline void store_words(uint16_t* p, Ints a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
inline void store_ints(int32_t* p, Ints a) { _mm512_storeu_si512(p, a.v); }

inline Bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Bytes low_half(Bytes a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline Bytes high_half(Bytes a) {
    return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
inline Quad load_quad(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return {_mm512_set1_epi32(x)};
}
// sum + w . x, with int4 codes (at most 15) and with int8 codes: exact in 32 bits.
inline Ints dot4(Ints sum, Bytes w, Quad x) { return {_mm512_dpbusd_epi32(sum.v, w.v, x.v)}; }
inline Ints dot8(Ints sum, Bytes w, Quad x) { return {_mm512_dpbusd_epi32(sum.v, w.v, x.v)}; }
constexpr bool kSigned8 = false;

inline uint32_t max_lanes_unsigned(Ints a) { return _mm512_reduce_max_epu32(a.v); }
inline int32_t sum_lanes(Ints a) { return _mm512_reduce_add_epi32(a.v); }
inline void to_halves(Floats a, __m256& low, __m256& high) {
    low = _mm512_castps512_ps256(a.v);
    high = _mm512_extractf32x8_ps(a.v, 1);
}

// Sixteen sums at once, each by the tree in simd.h: of acc[i][t], at out[4 i + t].
inline void sum_lanes(const Floats (&acc)[4][4], Floats& out) {
    __m512 quarters[4];  // of each t: four lanes of each i
    for (int t = 0; t < 4; ++t) {
        __m512 halves[2];  // eight lanes of two
        for (int i = 0; i < 2; ++i)
            halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(acc[2 * i][t].v, acc[2 * i + 1][t].v, 0x44),
                                      _mm512_shuffle_f32x4(acc[2 * i][t].v, acc[2 * i + 1][t].v, 0xee));
        quarters[t] = _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                                    _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
    }
    __m512 pairs[2];
    for (int t = 0; t < 2; ++t)
        pairs[t] = _mm512_add_ps(_mm512_shuffle_ps(quarters[2 * t], quarters[2 * t + 1], 0x44),
                                 _mm512_shuffle_ps(quarters[2 * t], quarters[2 * t + 1], 0xee));
    out.v = _mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88), _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd));
}

#if defined(LEADLINE_BF16)
struct Pairs {  // two neighbours a lane
    __m512i v;
};

inline Pairs load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
inline Pairs set1_pair(const uint16_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return {_mm512_set1_epi32(x)};
}
// Columns of two rows as neighbours, in an order that `restore` mends.
inline void interleave(Pairs a, Pairs b, Pairs& first, Pairs& second) {
    first.v = _mm512_unpacklo_epi16(a.v, b.v), second.v = _mm512_unpackhi_epi16(a.v, b.v);
}
inline void restore(Floats& first, Floats& second) {
    const __m512 low = _mm512_shuffle_f32x4(first.v, second.v, 0x44), high = _mm512_shuffle_f32x4(first.v, second.v, 0xee);
    first.v = _mm512_shuffle_f32x4(low, low, 0xd8), second.v = _mm512_shuffle_f32x4(high, high, 0xd8);
}
inline Floats dot_pairs(Floats sum, Pairs x, Pairs y) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(x.v), reinterpret_cast<__m512bh>(y.v))};
}
inline void store_rounded(uint16_t* p, Floats a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)));
}
#endif

}  // namespace LEADLINE_ISA
}  // namespace leadline
