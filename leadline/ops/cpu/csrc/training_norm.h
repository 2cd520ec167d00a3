// RMSNorm and its gradients, a row at a time; the weight's gradient is summed by stretches of rows, which the caller adds.
#pragma once

#include <algorithm>
#include <cmath>

#include "team.h"
#include "tiles.h"
#include "training.h"

namespace leadline {
namespace LEADLINE_ISA {

inline Floats rounded(Floats x) { return floats(shift_left({_mm512_cvtepu16_epi32(to_bf16(x))}, 16)); }

// out = weight x bf16(x / rms(x)): rounded where the reference rounds.
inline void norm_row(const NormPass& p, int64_t row) {
    const uint16_t* x = p.x + row * p.stride;
    const float scale = 1.0f / std::sqrt(dot(x, x, p.width) / static_cast<float>(p.width) + p.eps);
    p.scales[row] = scale;
    for (int j = 0; j < p.width; j += 16)
        store_bf16(p.out + row * p.width + j, load_bf16(p.weight + j) * rounded(load_bf16(x + j) * set1(scale)));
}

// With n = x scale and h = weight x gradient: scale (h - n mean(h n)); gradient x n is added to `sums`.
inline void norm_row_backward(const NormPass& p, int64_t row, float* sums) {
    const uint16_t *x = p.x + row * p.stride, *grad = p.grad_out + row * p.width;
    const Floats scale = set1(p.scales[row]);
    Floats along = zero();
    for (int j = 0; j < p.width; j += 16) {
        const Floats n = load_bf16(x + j) * scale, g = load_bf16(grad + j);
        along = fma(load_bf16(p.weight + j) * g, n, along);
        store(sums + j, fma(g, rounded(n), load(sums + j)));
    }
    const Floats mean = set1(sum_lanes(along) / static_cast<float>(p.width));
    for (int j = 0; j < p.width; j += 16) {
        const Floats n = load_bf16(x + j) * scale, h = load_bf16(p.weight + j) * load_bf16(grad + j);
        store_bf16(p.grad_x + row * p.width + j, scale * (h - n * mean));
    }
}

template <class Row>
void each_stretch(const NormPass& p, int threads, const Row& row) {
    team_each(threads, (p.rows + kNormRows - 1) / kNormRows, [&](int item) {
        for (int64_t r = static_cast<int64_t>(item) * kNormRows; r < std::min(p.rows, (item + 1) * kNormRows); ++r) row(item, r);
    });
}

inline void norm(const NormPass& p, int threads) {
    each_stretch(p, threads, [&](int, int64_t row) { norm_row(p, row); });
}

inline void norm_backward(const NormPass& p, int threads) {
    std::fill_n(p.grad_weights, static_cast<int64_t>((p.rows + kNormRows - 1) / kNormRows) * p.width, 0.0f);
    each_stretch(p, threads, [&](int item, int64_t row) {
        norm_row_backward(p, row, p.grad_weights + static_cast<int64_t>(item) * p.width);
    });
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
