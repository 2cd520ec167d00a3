// Cross-entropy: logits in, their gradient out.
#pragma once

#include <cmath>

#include "team.h"
#include "tiles.h"
#include "training.h"

namespace leadline {
namespace LEADLINE_ISA {

inline float word_to_float(uint16_t x) { return _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(x << 16))); }

// One row of logits: scale x -log softmax[target] and its gradient, (softmax - one hot) x scale.
inline float row_nll(const uint16_t* logits, int64_t target, float scale, int64_t columns, uint16_t* grad) {
    Room& room = Room::open();
    float* weights = room.take<float>(static_cast<size_t>(columns));
    Floats peak = load_bf16(logits), sum = zero();
    for (int64_t j = 16; j < columns; j += 16) peak = max(peak, load_bf16(logits + j));
    const float most = max_lanes(peak);
    for (int64_t j = 0; j < columns; j += 16) {
        const Floats weight = exp2(fma(load_bf16(logits + j), set1(kLog2e), set1(-most * kLog2e)));
        store(weights + j, weight);
        sum = sum + weight;
    }
    const float all = sum_lanes(sum);
    const Floats factor = set1(scale / all);
    for (int64_t j = 0; j < columns; j += 16) store_bf16(grad + j, load(weights + j) * factor);
    const float logit = word_to_float(logits[target]);
    const Floats right = set1((weights[target] / all - 1.0f) * scale);
    uint16_t rounded[16];
    store_bf16(rounded, right);
    grad[target] = rounded[0];
    return (most + std::log(all) - logit) * scale;
}

inline void softmax_nll(const uint16_t* logits, const int64_t* targets, const float* scales, int rows, int64_t columns,
                        float* losses, uint16_t* grads, int threads) {
    team_each(threads, rows, [&](int r) {
        losses[r] = row_nll(logits + r * columns, targets[r], scales[r], columns, grads + r * columns);
    });
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
