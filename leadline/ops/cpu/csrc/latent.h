// Cached rows in fewer bits, as leadline/ops/latent.py lays them out and rounds them: that is the reference, to the bit.
// Whole rows are taken apart into floats before attention reads them, a segment at a time.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"

namespace leadline {
namespace LEADLINE_ISA {

inline float greatest(const float* x, int n) {
    float most = 0.0f;
    for (int i = 0; i < n; ++i) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
    return most;
}

inline float finite_number(float x) {
    if (x != x) return 0.0f;
    constexpr float kMost = std::numeric_limits<float>::max();
    return x > kMost ? kMost : x < -kMost ? -kMost : x;
}

inline float bounded_scale(float most, int largest) {
    const float scale = most / static_cast<float>(largest), limit = std::numeric_limits<float>::max() / 256.0f;
    return scale < limit ? scale : limit;
}

inline void codes_of(const float* x, int n, float scale, int largest, uint8_t* codes) {
    const float step = scale > std::numeric_limits<float>::min() ? scale : std::numeric_limits<float>::min();
    for (int i = 0; i < n; ++i) {
        float code = std::nearbyint(x[i] / step);
        code = code > static_cast<float>(largest) ? static_cast<float>(largest) : code;
        code = code < static_cast<float>(-largest) ? static_cast<float>(-largest) : code;
        codes[i] = static_cast<uint8_t>(static_cast<int>(code) + largest + 1);
    }
}

inline uint16_t bf16_of(float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    return static_cast<uint16_t>((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}

inline float float_of(uint16_t half) {
    const uint32_t b = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &b, 4);
    return x;
}

inline void pack_six(const uint8_t* codes, int group, uint8_t* low, uint8_t* high) {
    for (int i = 0; i < group / 2; ++i) low[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[group / 2 + i] & 15) << 4);
    const int quarter = group / 4;
    for (int i = 0; i < quarter; ++i)
        high[i] = static_cast<uint8_t>(codes[i] >> 4 | (codes[quarter + i] >> 4) << 2 | (codes[2 * quarter + i] >> 4) << 4 |
                                       (codes[3 * quarter + i] >> 4) << 6);
}

// One row to its codes and its scales.
void encode_row(const float* row, const Latents& form, uint8_t* codes, uint8_t* scales) {
    float x[kMostWidth];
    uint8_t plain[kMostWidth];
    for (int i = 0; i < form.latent + form.rope; ++i) x[i] = finite_number(row[i]);
    for (int g = 0; g * form.group < form.latent; ++g) {
        const float* part = x + g * form.group;
        if (form.six) {
            const uint16_t stored = bf16_of(bounded_scale(greatest(part, form.group), 31));
            codes_of(part, form.group, float_of(stored), 31, plain);
            pack_six(plain, form.group, codes + g * form.group / 2, codes + form.latent / 2 + g * form.group / 4);
            std::memcpy(scales + 2 * g, &stored, 2);
        } else {
            const float scale = bounded_scale(greatest(part, form.group), 127);
            codes_of(part, form.group, scale, 127, codes + g * form.group);
            std::memcpy(scales + 4 * g, &scale, 4);
        }
    }
    const float scale = bounded_scale(greatest(x + form.latent, form.rope), 127);
    codes_of(x + form.latent, form.rope, scale, 127, codes + form.code_bytes() - form.rope);
    std::memcpy(scales + form.scale_bytes() - 4, &scale, 4);
}

inline void values_of(const uint8_t* codes, int n, int zero, float scale, float* out) {
    for (int i = 0; i < n; ++i) out[i] = static_cast<float>(static_cast<int>(codes[i]) - zero) * scale;
}

inline void unpack_six(const uint8_t* low, const uint8_t* high, int group, float scale, float* out) {
    const int quarter = group / 4;
    for (int part = 0; part < 4; ++part) {
        const uint8_t* nibbles = low + part % 2 * quarter;
        const int shift = part / 2 * 4, place = 2 * part;
        for (int i = 0; i < quarter; ++i) {
            const int code = (nibbles[i] >> shift & 15) | (high[i] >> place & 3) << 4;
            out[part * quarter + i] = static_cast<float>(code - 32) * scale;
        }
    }
}

void decode_row(const uint8_t* codes, const uint8_t* scales, const Latents& form, float* out) {
    for (int g = 0; g * form.group < form.latent; ++g) {
        if (form.six) {
            uint16_t stored;
            std::memcpy(&stored, scales + 2 * g, 2);
            unpack_six(codes + g * form.group / 2, codes + form.latent / 2 + g * form.group / 4, form.group,
                       float_of(stored), out + g * form.group);
        } else {
            float scale;
            std::memcpy(&scale, scales + 4 * g, 4);
            values_of(codes + g * form.group, form.group, 128, scale, out + g * form.group);
        }
    }
    float scale;
    std::memcpy(&scale, scales + form.scale_bytes() - 4, 4);
    values_of(codes + form.code_bytes() - form.rope, form.rope, 128, scale, out + form.latent);
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
