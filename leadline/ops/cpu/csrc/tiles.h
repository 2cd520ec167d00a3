// Products of bf16 matrices with float32 sums, by AVX512-BF16: C = A B, two neighbours of k in each 32-bit lane.
//
// B, and A where it comes transposed, lie in panels: 16 columns (of A: rows) wide, a panel after the other, within one
// the pairs of k ascending, 64 bytes each: [panel][pair][16][2]. A may also be rows as they are.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "simd.h"

namespace leadline {
namespace LEADLINE_ISA {

constexpr int kPairBytes = 64;  // of a panel

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Bytes from a row to the next, from 16 rows to the next, from a pair of k to the next.
struct Left {
    const char* at;
    int64_t row, sixteen, pair;

    static Left rows(const uint16_t* x, int64_t stride) {
        return {reinterpret_cast<const char*>(x), 2 * stride, 32 * stride, 4};
    }
    static Left panels(const uint16_t* x, int pairs) {
        return {reinterpret_cast<const char*>(x), 4, static_cast<int64_t>(pairs) * kPairBytes, kPairBytes};
    }
    const char* row_at(int m) const { return at + m / 16 * sixteen + m % 16 * row; }
    // From this row, a multiple of 16, and this pair of k on.
    Left from(int m, int k = 0) const { return {row_at(m) + k * pair, row, sixteen, pair}; }
};

struct Right {
    const char* at;
    int64_t panel;  // bytes from a panel to the next

    static Right panels(const uint16_t* x, int pairs) {
        return {reinterpret_cast<const char*>(x), static_cast<int64_t>(pairs) * kPairBytes};
    }
    // From this pair of k on.
    Right from(int pair) const { return {at + static_cast<int64_t>(pair) * kPairBytes, panel}; }
};

inline Floats bf16_product(Floats sum, __m512i a, __m512i b) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
}

template <int MR, int NP, bool ADD>
inline void product_tile(const char* a, int64_t row, int64_t pair, const char* b, int64_t panel, int pairs, float* c,
                         int64_t stride) {
    Floats sum[MR][NP];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 3
        for (int p = 0; p < NP; ++p) sum[m][p] = zero();
    constexpr int kBases = (MR + 2) / 3;  // three rows from each: what an address can express
    const char* base[kBases];
    for (int i = 0; i < kBases; ++i) base[i] = a + 3 * i * row;
    for (int k = 0; k < pairs; ++k) {
        __m512i right[NP];
#pragma GCC unroll 3
        for (int p = 0; p < NP; ++p) right[p] = _mm512_loadu_si512(b + p * panel);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            int32_t both;
            std::memcpy(&both, base[m / 3] + m % 3 * row, 4);
            const __m512i left = _mm512_set1_epi32(both);
#pragma GCC unroll 3
            for (int p = 0; p < NP; ++p) sum[m][p] = bf16_product(sum[m][p], left, right[p]);
        }
        for (int i = 0; i < kBases; ++i) base[i] += pair;
        b += kPairBytes;
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 3
        for (int p = 0; p < NP; ++p) {
            float* to = c + m * stride + p * 16;
            store(to, ADD ? load(to) + sum[m][p] : sum[m][p]);
        }
}

template <int NP, bool ADD>
inline void product_rows(const Left& a, int rows, const char* b, int64_t panel, int pairs, float* c, int64_t stride) {
    int m = 0;
    for (; m + 8 <= rows; m += 8)
        product_tile<8, NP, ADD>(a.row_at(m), a.row, a.pair, b, panel, pairs, c + m * stride, stride);
    for (; m + 2 <= rows; m += 2)
        product_tile<2, NP, ADD>(a.row_at(m), a.row, a.pair, b, panel, pairs, c + m * stride, stride);
    if (m < rows) product_tile<1, NP, ADD>(a.row_at(m), a.row, a.pair, b, panel, pairs, c + m * stride, stride);
}

template <bool ADD>
inline void product_panels(const Left& a, int rows, const Right& b, int panels, int pairs, float* c, int64_t stride) {
    for (int p = 0; p < panels;) {
        const char* right = b.at + p * b.panel;
        const int left = panels - p;
        if (left == 3 || left > 4) {
            product_rows<3, ADD>(a, rows, right, b.panel, pairs, c + p * 16, stride);
            p += 3;
        } else if (left >= 2) {
            product_rows<2, ADD>(a, rows, right, b.panel, pairs, c + p * 16, stride);
            p += 2;
        } else {
            product_rows<1, ADD>(a, rows, right, b.panel, pairs, c + p * 16, stride);
            p += 1;
        }
    }
}

// c (rows, 16 panels) = or += A B, over `pairs` pairs of k.
inline void product(const Left& a, int rows, const Right& b, int panels, int pairs, float* c, int64_t stride, bool add) {
    (add ? product_panels<true> : product_panels<false>)(a, rows, b, panels, pairs, c, stride);
}

inline __m512i interleave(__m256i even, __m256i odd) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}
inline __m256i load_words(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i to_bf16(Floats x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v)); }
inline void store_bf16(uint16_t* p, Floats x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(x)); }

inline float dot(const uint16_t* x, const uint16_t* y, int width) {
    Floats sum = zero();
    for (int j = 0; j < width; j += 16) sum = fma(load_bf16(x + j), load_bf16(y + j), sum);
    return sum_lanes(sum);
}

// 2^x within 3e-6 of itself, far finer than what is stored; 0 far below, NaN stays NaN.
inline Floats exp2(Floats x) {
    const Floats n = {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}, r = x - n;
    Floats p = set1(9.58285e-3f);
    p = fma(p, r, set1(5.590643e-2f));
    p = fma(p, r, set1(2.4024099e-1f));
    p = fma(p, r, set1(6.9312419e-1f));
    p = fma(p, r, set1(1.0f));
    return {_mm512_scalef_ps(p.v, n.v)};
}
constexpr float kLog2e = 1.44269504f;

// Panels whose k are these rows: two rows of 16 columns make a pair. Rows past the last up to `pairs` are zero.
template <class RowAt>
void pack_rows(const RowAt& row_at, int rows, int columns, int pairs, uint16_t* out) {
    const __m256i none = _mm256_setzero_si256();
    for (int k = 0; k < pairs; ++k) {
        const uint16_t* even = 2 * k < rows ? row_at(2 * k) : nullptr;
        const uint16_t* odd = 2 * k + 1 < rows ? row_at(2 * k + 1) : nullptr;
        for (int j = 0; j < columns; j += 16) {
            const __m512i both = interleave(even ? load_words(even + j) : none, odd ? load_words(odd + j) : none);
            _mm512_storeu_si512(out + (static_cast<int64_t>(j / 16) * pairs + k) * 32, both);
        }
    }
}

inline void transpose(__m512i (&x)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; ++j) {
            t[i + j] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; ++j) {
        x[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        x[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
}

// Panels whose columns are these rows and whose k are their columns (a multiple of 16). Rows up to a whole panel are zero.
template <class RowAt>
void pack_columns(const RowAt& row_at, int rows, int columns, uint16_t* out) {
    const int pairs = columns / 2;
    for (int first = 0; first < rows; first += 16) {
        uint16_t* panel = out + static_cast<int64_t>(first / 16) * pairs * 32;
        for (int k = 0; k < pairs; k += 16) {
            const int some = pairs - k < 16 ? pairs - k : 16;
            const __mmask16 mask = static_cast<__mmask16>((1u << some) - 1);
            __m512i x[16];
            for (int i = 0; i < 16; ++i)
                x[i] = first + i < rows ? _mm512_maskz_loadu_epi32(mask, row_at(first + i) + 2 * k) : _mm512_setzero_si512();
            transpose(x);
            for (int i = 0; i < some; ++i) _mm512_storeu_si512(panel + (k + i) * 32, x[i]);
        }
    }
}

// Bytes of panels, in elements.
inline size_t panels_size(int columns, int pairs) { return static_cast<size_t>(round_up(columns, 16)) * static_cast<size_t>(pairs) * 2; }

}  // namespace LEADLINE_ISA
}  // namespace leadline
