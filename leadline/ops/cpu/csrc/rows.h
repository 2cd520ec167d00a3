// Work on single rows: norms, quantisation, activations, sums. One order of accumulation each: sixteen lanes, then
// their tree. The unit that includes this has `matmul` and `kRowBlock`, rows whose activations are made at a time, first.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels.h"
#include "simd.h"

namespace leadline {
namespace LEADLINE_ISA {

// One group to codes in [-127, 127]. The greatest magnitude is found on the bits, where NaN is greater than infinity:
// both come out as a scale that is not finite, so that a broken number is not lost on the way.
template <int GROUP>
inline void quantise_group(const float* x, int columns, int8_t* codes, float* scale, int32_t* sum) {
    Floats values[GROUP / 16];
    Ints most = set1i(0), total = set1i(0);
    for (int i = 0; i < GROUP / 16; ++i) {
        const int left = columns - 16 * i;
        values[i] = left >= 16 ? load(x + 16 * i) : left > 0 ? load_n(x + 16 * i, left) : zero();
        most = max_unsigned(most, bits(values[i]) & set1i(0x7fffffff));
    }
    const uint32_t greatest = max_lanes_unsigned(most);
    float peak;
    std::memcpy(&peak, &greatest, 4);
    const bool empty = peak < 1e-30f;
    *scale = empty ? 0.0f : peak / 127.0f;
    const Floats steps = set1(empty ? 0.0f : 127.0f / peak);
    for (int i = 0; i < GROUP / 16; ++i) {
        const Ints code = to_ints(values[i] * steps);
        store_bytes(codes + 16 * i, code);
        total = total + code;
    }
    *sum = -8 * sum_lanes(total);
}

void quantise(const float* x, int columns, int8_t* codes, float* scales, int32_t* sums, int group) {
    const auto each = group == 32 ? quantise_group<32> : quantise_group<64>;
    for (int i = 0, g = 0; i < columns; i += group, ++g) each(x + i, columns - i, codes + i, scales + g, sums + g);
}

void norm(const float* x, const float* weight, float eps, int width, float* out) {
    Floats squares = zero();
    each_vector(width, [&](int i, int n) {
        Floats v = load_n(x + i, n);
        squares = fma(v, v, squares);
    });
    const Floats inverse = set1(1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(width) + eps));
    each_vector(width, [&](int i, int n) {
        store_n(out + i, load_n(x + i, n) * inverse * load_n(weight + i, n), n);
    });
}

void add(float* x, const float* y, int width) {
    each_vector(width, [&](int i, int n) { store_n(x + i, load_n(x + i, n) + load_n(y + i, n), n); });
}

void combine(float* x, const float* const* rows, const float* gates, int slots, const float* shared, int width) {
    each_vector(width, [&](int i, int n) {
        Floats sum = zero();
        for (int k = 0; k < slots; ++k) sum = fma(load_n(rows[k] + i, n), set1(gates[k]), sum);
        if (shared) sum = sum + load_n(shared + i, n);
        store_n(x + i, load_n(x + i, n) + sum, n);
    });
}

void softmax(float* logits, int experts) {
    float most = logits[0];
    for (int e = 1; e < experts; ++e) most = logits[e] > most ? logits[e] : most;
    Floats total = zero();
    each_vector(experts, [&](int i, int n) {
        float lane[16];
        store(lane, exp(load_n(logits + i, n) - set1(most)));
        for (int j = n; j < 16; ++j) lane[j] = 0.0f;
        total = total + load(lane);
        std::memcpy(logits + i, lane, sizeof(float) * static_cast<size_t>(n));
    });
    const float sum = sum_lanes(total);
    each_vector(experts, [&](int i, int n) { store_n(logits + i, load_n(logits + i, n) / set1(sum), n); });
}

// SiLU(gate) x up of 16 columns.
inline Floats activate(Floats gate, Floats up) { return gate / (set1(1.0f) + exp(zero() - gate)) * up; }

void swiglu(const Matrix& w, int part, int block, const Activations& a, const int32_t* index, int rows, float* x,
            int64_t x_stride, const Quantised& to) {
    const int first = block * 2 * (kFfnBlock / kPanel);
    const int panels = w.panels - first < 2 * (kFfnBlock / kPanel) ? w.panels - first : 2 * (kFfnBlock / kPanel);
    const int columns = panels / 2 * kPanel;
    alignas(64) float both[kRowBlock][2 * kFfnBlock];
    alignas(64) float act[kFfnBlock];
    for (int m = 0; m < rows; m += kRowBlock) {
        const int count = rows - m < kRowBlock ? rows - m : kRowBlock;
        matmul(w, part, first, panels, index ? a : a.from(m), index ? index + m : nullptr, count, both[0], 2 * kFfnBlock);
        for (int r = 0; r < count; ++r) {
            float* out = to.codes ? act : x + (m + r) * x_stride + block * kFfnBlock;
            for (int p = 0; p < panels / 2; ++p)
                store(out + p * kPanel, activate(load(both[r] + 2 * p * kPanel), load(both[r] + (2 * p + 1) * kPanel)));
            if (to.codes) {
                const int64_t row = m + r, group = block * (kFfnBlock / to.group);
                quantise(act, columns, to.codes + row * to.code_stride + block * kFfnBlock,
                         to.scales + row * to.group_stride + group, to.sums + row * to.group_stride + group, to.group);
            }
        }
    }
}

void divide(float* x, float by, int width) {
    const Floats times = set1(1.0f / by);
    each_vector(width, [&](int i, int n) { store_n(x + i, load_n(x + i, n) * times, n); });
}

void to_bf16(const float* x, uint16_t* out, int width) {
    for (int i = 0; i < width; ++i) {
        uint32_t b;
        std::memcpy(&b, x + i, 4);
        if ((b & 0x7fffffff) > 0x7f800000) b = 0;  // NaN
        uint32_t rounded = b + 0x7fff + ((b >> 16) & 1);
        if ((rounded & 0x7fffffff) >= 0x7f800000) rounded = (b & 0x80000000) | 0x7f7f0000;  // the greatest there is
        out[i] = static_cast<uint16_t>(rounded >> 16);
    }
}

void from_bf16(const uint16_t* x, float* out, int width) {
    for (int i = 0; i < width; ++i) {
        uint32_t b = static_cast<uint32_t>(x[i]) << 16;
        std::memcpy(out + i, &b, 4);
    }
}

void likeliest(const float* logits, int64_t width, float* peak, int64_t* place) {
    Ints nan = set1i(0);
    Floats most = set1(-INFINITY);
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
        Floats x = load(logits + i);
        nan = max_unsigned(nan, bits(x) & set1i(0x7fffffff));
        most = max(most, x);
    }
    float best = max_lanes(most);
    uint32_t greatest = max_lanes_unsigned(nan);
    for (; i < width; ++i) {
        uint32_t b;
        std::memcpy(&b, logits + i, 4);
        greatest = (b & 0x7fffffff) > greatest ? (b & 0x7fffffff) : greatest;
        best = logits[i] > best ? logits[i] : best;
    }
    *peak = greatest > 0x7f800000 ? NAN : best;
    *place = 0;
    for (int64_t j = 0; j < width; ++j)
        if (logits[j] == best) {
            *place = j;
            break;
        }
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
