// Sixteen lanes in an array: plain C++, for every machine, and the meaning of what the others do. Included by simd.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace leadline {
namespace LEADLINE_ISA {

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

// Halves onto halves, the same tree everywhere.
inline float sum_lanes(Floats a) {
    float* x = a.v;
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) x[i] = x[i] + x[i + width];
    return x[0];
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
