// Sixteen lanes in four registers of NEON, with the dot products of bytes that Armv8.2 has. Included by simd.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace leadline {
namespace LEADLINE_ISA {

struct Floats {
    float32x4_t v[4];
};
struct Ints {
    int32x4_t v[4];
};
struct Bytes {
    uint8x16_t v[4];
};
struct Quad {
    int8x16_t v;
};

// Each of four registers by itself; written out, since compilers keep what a loop touches in memory.
template <class T, class Function>
inline T registers(Function each) {
    return {{each(0), each(1), each(2), each(3)}};
}
inline uint32x4_t unsigned_of(int32x4_t a) { return vreinterpretq_u32_s32(a); }
inline int32x4_t signed_of(uint32x4_t a) { return vreinterpretq_s32_u32(a); }

inline Floats set1(float x) {
    return registers<Floats>([=](int) { return vdupq_n_f32(x); });
}
inline Floats zero() { return set1(0.0f); }
inline Floats load(const float* p) {
    return registers<Floats>([=](int i) { return vld1q_f32(p + 4 * i); });
}
inline void store(float* p, Floats a) {
    vst1q_f32(p, a.v[0]), vst1q_f32(p + 4, a.v[1]), vst1q_f32(p + 8, a.v[2]), vst1q_f32(p + 12, a.v[3]);
}
inline Floats operator+(Floats a, Floats b) {
    return registers<Floats>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline Floats operator-(Floats a, Floats b) {
    return registers<Floats>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline Floats operator*(Floats a, Floats b) {
    return registers<Floats>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline Floats operator/(Floats a, Floats b) {
    return registers<Floats>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline Floats fma(Floats a, Floats b, Floats c) {
    return registers<Floats>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
// As x86 has them: the second operand where either is NaN.
inline Floats max(Floats a, Floats b) {
    return registers<Floats>([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline Floats min(Floats a, Floats b) {
    return registers<Floats>([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline Floats load_half(const uint16_t* p) {
    return registers<Floats>([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline Floats load_bf16(const uint16_t* p) {
    return registers<Floats>([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
// Two columns of sixteen outputs, side by side in each lane.
inline void load_bf16_pair(const uint16_t* p, Floats& even, Floats& odd) {
    const auto words = [=](int i) { return vreinterpretq_u32_u16(vld1q_u16(p + 8 * i)); };
    even = registers<Floats>([&](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(words(i), 16)); });
    odd = registers<Floats>([&](int i) { return vreinterpretq_f32_u32(vandq_u32(words(i), vdupq_n_u32(0xffff0000u))); });
}
inline Ints bits(Floats a) {
    return registers<Ints>([&](int i) { return vreinterpretq_s32_f32(a.v[i]); });
}
inline Floats floats(Ints a) {
    return registers<Floats>([&](int i) { return vreinterpretq_f32_s32(a.v[i]); });
}
inline Ints set1i(int32_t x) {
    return registers<Ints>([=](int) { return vdupq_n_s32(x); });
}
inline Ints operator+(Ints a, Ints b) {
    return registers<Ints>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
}
inline Ints operator&(Ints a, Ints b) {
    return registers<Ints>([&](int i) { return vandq_s32(a.v[i], b.v[i]); });
}
inline Ints shift_left(Ints a, int n) {
    return registers<Ints>([&](int i) { return vshlq_s32(a.v[i], vdupq_n_s32(n)); });
}
inline Ints shift_right(Ints a, int n) {
    return registers<Ints>([&](int i) { return signed_of(vshlq_u32(unsigned_of(a.v[i]), vdupq_n_s32(-n))); });
}
inline Ints max_unsigned(Ints a, Ints b) {
    return registers<Ints>([&](int i) { return signed_of(vmaxq_u32(unsigned_of(a.v[i]), unsigned_of(b.v[i]))); });
}
inline Ints min_unsigned(Ints a, Ints b) {
    return registers<Ints>([&](int i) { return signed_of(vminq_u32(unsigned_of(a.v[i]), unsigned_of(b.v[i]))); });
}
inline Floats to_floats(Ints a) {
    return registers<Floats>([&](int i) { return vcvtq_f32_s32(a.v[i]); });
}
// Nearest, ties to even; what does not fit is the least integer, as on x86.
inline Ints to_ints(Floats a) {
    return registers<Ints>([&](int i) {
        const uint32x4_t fits = vcaltq_f32(a.v[i], vdupq_n_f32(2147483648.0f));
        return vbslq_s32(fits, vcvtnq_s32_f32(a.v[i]), vdupq_n_s32(INT32_MIN));
    });
}
inline void store_ints(int32_t* p, Ints a) {
    vst1q_s32(p, a.v[0]), vst1q_s32(p + 4, a.v[1]), vst1q_s32(p + 8, a.v[2]), vst1q_s32(p + 12, a.v[3]);
}
inline int16x8_t words_of(int32x4_t a, int32x4_t b) { return vcombine_s16(vmovn_s32(a), vmovn_s32(b)); }
inline void store_bytes(int8_t* p, Ints a) {
    vst1q_s8(p, vcombine_s8(vmovn_s16(words_of(a.v[0], a.v[1])), vmovn_s16(words_of(a.v[2], a.v[3]))));
}
inline void store_words(uint16_t* p, Ints a) {
    vst1q_u16(p, vreinterpretq_u16_s16(words_of(a.v[0], a.v[1])));
    vst1q_u16(p + 8, vreinterpretq_u16_s16(words_of(a.v[2], a.v[3])));
}

inline Bytes load_bytes(const uint8_t* p) {
    return registers<Bytes>([=](int i) { return vld1q_u8(p + 16 * i); });
}
inline Bytes low_half(Bytes a) {
    return registers<Bytes>([&](int i) { return vandq_u8(a.v[i], vdupq_n_u8(15)); });
}
inline Bytes high_half(Bytes a) {
    return registers<Bytes>([&](int i) { return vshrq_n_u8(a.v[i], 4); });
}
inline Quad load_quad(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return {vreinterpretq_s8_s32(vdupq_n_s32(x))};
}
// sum + w . x, exact in 32 bits: int4 codes are small enough to be taken for signed bytes, int8 codes are made such.
inline Ints dot4(Ints sum, Bytes w, Quad x) {
    return registers<Ints>([&](int i) { return vdotq_s32(sum.v[i], vreinterpretq_s8_u8(w.v[i]), x.v); });
}
inline Ints dot8(Ints sum, Bytes w, Quad x) {
    return registers<Ints>([&](int i) {
        return vdotq_s32(sum.v[i], vreinterpretq_s8_u8(veorq_u8(w.v[i], vdupq_n_u8(0x80))), x.v);
    });
}
constexpr bool kSigned8 = true;

// Halves onto halves, the same tree everywhere.
inline float sum_lanes(Floats a) {
    const float32x4_t x = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t y = vadd_f32(vget_low_f32(x), vget_high_f32(x));
    return vget_lane_f32(y, 0) + vget_lane_f32(y, 1);
}
inline uint32_t max_lanes_unsigned(Ints a) {
    const auto u = [&](int i) { return unsigned_of(a.v[i]); };
    return vmaxvq_u32(vmaxq_u32(vmaxq_u32(u(0), u(1)), vmaxq_u32(u(2), u(3))));
}
inline int32_t sum_lanes(Ints a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
