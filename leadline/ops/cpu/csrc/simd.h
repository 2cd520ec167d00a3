// Sixteen lanes on every machine: one register of AVX-512, two of AVX2, an array without either.
//
// The kernels are written once against these types and compiled once an instruction set. Every operation gives the same
// bits on all of them: float operations are single IEEE operations (fma included) and the order of the lanes in a sum is
// fixed here, so a result depends neither on the machine's vectors nor on their width.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace leadline {
namespace LEADLINE_ISA {

#if defined(LEADLINE_AVX512)

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

inline void to_halves(Floats a, __m256& low, __m256& high) {
    low = _mm512_castps512_ps256(a.v);
    high = _mm512_extractf32x8_ps(a.v, 1);
}

#elif defined(LEADLINE_AVX2)

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

inline void to_halves(Floats x, __m256& low, __m256& high) {
    low = x.a;
    high = x.b;
}

#else

struct Floats {
    float v[16];
};
struct Ints {
    int32_t v[16];
};
struct Bytes {
    uint8_t v[64];
};
struct Quad {
    int8_t v[4];
};

template <class T, class Function>
inline T lanes(Function each) {
    T out;
    for (int i = 0; i < 16; ++i) out.v[i] = each(i);
    return out;
}
inline float as_float(uint32_t x) {
    float y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline uint32_t as_bits(float x) {
    uint32_t y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline Floats zero() { return lanes<Floats>([](int) { return 0.0f; }); }
inline Floats set1(float x) { return lanes<Floats>([=](int) { return x; }); }
inline Floats load(const float* p) { return lanes<Floats>([=](int i) { return p[i]; }); }
inline void store(float* p, Floats a) { std::memcpy(p, a.v, 64); }
inline Floats operator+(Floats a, Floats b) { return lanes<Floats>([&](int i) { return a.v[i] + b.v[i]; }); }
inline Floats operator-(Floats a, Floats b) { return lanes<Floats>([&](int i) { return a.v[i] - b.v[i]; }); }
inline Floats operator*(Floats a, Floats b) { return lanes<Floats>([&](int i) { return a.v[i] * b.v[i]; }); }
inline Floats operator/(Floats a, Floats b) { return lanes<Floats>([&](int i) { return a.v[i] / b.v[i]; }); }
inline Floats fma(Floats a, Floats b, Floats c) {
    return lanes<Floats>([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
// As the instructions do: the second operand where either is NaN.
inline Floats max(Floats a, Floats b) { return lanes<Floats>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline Floats min(Floats a, Floats b) { return lanes<Floats>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline float half_to_float(uint16_t h) {
    uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 0x3ff;
    if (exponent == 31) return as_float(sign | 0x7f800000 | (fraction << 13));
    if (exponent == 0) return as_float(sign | as_bits(static_cast<float>(fraction) * 0x1p-24f));
    return as_float(sign | ((exponent + 112) << 23) | (fraction << 13));
}
inline Floats load_half(const uint16_t* p) { return lanes<Floats>([=](int i) { return half_to_float(p[i]); }); }
inline float bf16_to_float(uint16_t h) { return as_float(static_cast<uint32_t>(h) << 16); }
inline Floats load_bf16(const uint16_t* p) { return lanes<Floats>([=](int i) { return bf16_to_float(p[i]); }); }
inline void load_bf16_pair(const uint16_t* p, Floats& even, Floats& odd) {
    for (int i = 0; i < 16; ++i) even.v[i] = bf16_to_float(p[2 * i]), odd.v[i] = bf16_to_float(p[2 * i + 1]);
}
inline Ints bits(Floats a) { return lanes<Ints>([&](int i) { return static_cast<int32_t>(as_bits(a.v[i])); }); }
inline Floats floats(Ints a) { return lanes<Floats>([&](int i) { return as_float(static_cast<uint32_t>(a.v[i])); }); }
inline Ints set1i(int32_t x) { return lanes<Ints>([=](int) { return x; }); }
inline Ints operator+(Ints a, Ints b) {
    return lanes<Ints>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i])); });
}
inline Ints operator&(Ints a, Ints b) { return lanes<Ints>([&](int i) { return a.v[i] & b.v[i]; }); }
inline Ints shift_left(Ints a, int n) {
    return lanes<Ints>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << n); });
}
inline Ints shift_right(Ints a, int n) {
    return lanes<Ints>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> n); });
}
inline Ints max_unsigned(Ints a, Ints b) {
    return lanes<Ints>([&](int i) { return static_cast<uint32_t>(a.v[i]) > static_cast<uint32_t>(b.v[i]) ? a.v[i] : b.v[i]; });
}
inline Ints min_unsigned(Ints a, Ints b) {
    return lanes<Ints>([&](int i) { return static_cast<uint32_t>(a.v[i]) < static_cast<uint32_t>(b.v[i]) ? a.v[i] : b.v[i]; });
}
inline Floats to_floats(Ints a) { return lanes<Floats>([&](int i) { return static_cast<float>(a.v[i]); }); }
inline Ints to_ints(Floats a) {
    return lanes<Ints>([&](int i) {
        bool fits = a.v[i] >= -2147483648.0f && a.v[i] < 2147483648.0f;
        return fits ? static_cast<int32_t>(std::nearbyint(a.v[i])) : INT32_MIN;
    });
}
inline void store_ints(int32_t* p, Ints a) { std::memcpy(p, a.v, 64); }
inline void store_bytes(int8_t* p, Ints a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}
inline void store_words(uint16_t* p, Ints a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>(a.v[i]);
}
inline Bytes load_bytes(const uint8_t* p) {
    Bytes x;
    std::memcpy(x.v, p, 64);
    return x;
}
inline Bytes low_half(Bytes a) {
    for (uint8_t& x : a.v) x &= 15;
    return a;
}
inline Bytes high_half(Bytes a) {
    for (uint8_t& x : a.v) x >>= 4;
    return a;
}
inline Quad load_quad(const int8_t* p) {
    Quad x;
    std::memcpy(x.v, p, 4);
    return x;
}
inline Ints dot4(Ints sum, Bytes w, Quad x) {
    for (int i = 0; i < 64; ++i) sum.v[i / 4] += static_cast<int32_t>(w.v[i]) * x.v[i % 4];
    return sum;
}
inline Ints dot8(Ints sum, Bytes w, Quad x) { return dot4(sum, w, x); }
constexpr bool kSigned8 = false;

#endif

// The sum and the greatest of sixteen lanes: halves onto halves, the same tree everywhere.
#if defined(LEADLINE_AVX512) || defined(LEADLINE_AVX2)
inline float sum_lanes(Floats a) {
    __m256 low, high;
    to_halves(a, low, high);
    __m256 x = _mm256_add_ps(low, high);
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
#else
inline float sum_lanes(Floats a) {
    float* x = a.v;
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) x[i] = x[i] + x[i + width];
    return x[0];
}
#endif
// Sixteen sums at once, each by that tree: of acc[i][t], at out[i][t].
#if defined(LEADLINE_AVX512)
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
#else
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
#else
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
  public:
    DenormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~DenormalsAreZero() { _mm_setcsr(before_); }
    DenormalsAreZero(const DenormalsAreZero&) = delete;
    DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

  private:
    unsigned before_;
#endif
};

}  // namespace LEADLINE_ISA
}  // namespace leadline
