// Sixteen lanes in two registers of AVX2, with AVX-VNNI or without. Included by simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace leadline {
namespace LEADLINE_ISA {

struct Floats {
    __m256 a, b;
};
struct Ints {
    __m256i a, b;
};
struct Bytes {
    __m256i a, b;
};
struct Quad {
    __m256i v;
};

inline Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Floats x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
inline Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Floats operator-(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Floats operator/(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Floats fma(Floats x, Floats y, Floats z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Floats max(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Floats min(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Floats load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline __m256 bf16_8(const uint16_t* p) {
    __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline Floats load_bf16(const uint16_t* p) { return {bf16_8(p), bf16_8(p + 8)}; }
inline void load_bf16_pair(const uint16_t* p, Floats& even, Floats& odd) {
    __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
    __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    even = {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(y, 16))};
    odd = {_mm256_castsi256_ps(_mm256_and_si256(x, mask)), _mm256_castsi256_ps(_mm256_and_si256(y, mask))};
}
inline Ints bits(Floats x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline Floats floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline Ints set1i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints operator+(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Ints operator&(Ints x, Ints y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline Ints shift_left(Ints x, int n) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
inline Ints shift_right(Ints x, int n) { return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)}; }
inline Ints max_unsigned(Ints x, Ints y) { return {_mm256_max_epu32(x.a, y.a), _mm256_max_epu32(x.b, y.b)}; }
inline Ints min_unsigned(Ints x, Ints y) { return {_mm256_min_epu32(x.a, y.a), _mm256_min_epu32(x.b, y.b)}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline void store_ints(int32_t* p, Ints x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
inline void store_bytes(int8_t* p, Ints x) {
    int32_t lanes[16];
    store_ints(lanes, x);
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(lanes[i]);
}
inline void store_words(uint16_t* p, Ints x) {  // of 16 bits
    const __m256i pairs = _mm256_packus_epi32(x.a, x.b);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(pairs, 0xd8));
}

inline Bytes load_bytes(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline Bytes low_half(Bytes x) {
    __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline Bytes high_half(Bytes x) {
    __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}
inline Quad load_quad(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return {_mm256_set1_epi32(x)};
}
#if defined(LEADLINE_AVXVNNI)
// sum + w . x: exact in 32 bits.
inline Ints dot4(Ints sum, Bytes w, Quad x) {
    return {_mm256_dpbusd_avx_epi32(sum.a, w.a, x.v), _mm256_dpbusd_avx_epi32(sum.b, w.b, x.v)};
}
inline Ints dot8(Ints sum, Bytes w, Quad x) { return dot4(sum, w, x); }
constexpr bool kSigned8 = false;
#else
// To a compiler a sum of integers may be made in any order, and gcc makes it after all its products, which then do not fit in
// registers: the barrier, and below a sum that saturates but never needs to, keep the order in which it is written.
inline __m256i add_pairs(__m256i sum, __m256i pairs) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    asm("" : "+x"(sum));
    return sum;
}
inline Ints dot4(Ints sum, Bytes w, Quad x) {
    return {add_pairs(sum.a, _mm256_maddubs_epi16(w.a, x.v)), add_pairs(sum.b, _mm256_maddubs_epi16(w.b, x.v))};
}
// Sums of int4's products in 16 bits: two of 15 x 127 at a time, eight times at most.
struct Words {
    __m256i a, b;
};
inline Words zero_words() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Words dot4(Words sum, Bytes w, Quad x) {
    return {_mm256_adds_epi16(sum.a, _mm256_maddubs_epi16(w.a, x.v)),
            _mm256_adds_epi16(sum.b, _mm256_maddubs_epi16(w.b, x.v))};
}
inline Ints add_words(Ints sum, Words words) { return {add_pairs(sum.a, words.a), add_pairs(sum.b, words.b)}; }
// 255 x 127 twice would saturate, so the sign moves to the weight: 2 x 127 x 127 does not. Codes are then signed.
inline __m256i signed_pairs(__m256i w, __m256i x) {
    __m256i value = _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80)));
    return _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(value, x));
}
inline Ints dot8(Ints sum, Bytes w, Quad x) {
    return {add_pairs(sum.a, signed_pairs(w.a, x.v)), add_pairs(sum.b, signed_pairs(w.b, x.v))};
}
constexpr bool kSigned8 = true;
#endif

inline void to_halves(Floats x, __m256& low, __m256& high) {
    low = x.a;
    high = x.b;
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
