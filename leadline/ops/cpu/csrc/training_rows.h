// Cross-entropy and AdamW: one pass over memory each.
#pragma once

#include <cmath>
#include <vector>

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

constexpr int64_t kStretch = 1 << 15;  // elements of a parameter that one item moves

inline void move(const Parameter& p, const AdamW& s, int64_t first, int64_t end) {
    const Floats keep1 = set1(s.beta1), new1 = set1(1.0f - s.beta1), keep2 = set1(s.beta2), new2 = set1(1.0f - s.beta2);
    const Floats rate = set1(s.lr / s.correction1), root = set1(1.0f / std::sqrt(s.correction2)), eps = set1(s.eps);
    const Floats decayed = set1(1.0f - s.lr * p.decay), clip = set1(s.clip);
    for (int64_t i = first; i < end; i += 16) {
        const __mmask16 some = static_cast<__mmask16>(end - i >= 16 ? 0xffff : (1u << (end - i)) - 1);
        const auto part = [&](const float* x) { return Floats{_mm512_maskz_loadu_ps(some, x + i)}; };
        const Floats g = Floats{_mm512_castsi512_ps(_mm512_slli_epi32(
                             _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, p.grad + i)), 16))} * clip;
        const Floats m = fma(part(p.first), keep1, g * new1), v = fma(part(p.second), keep2, g * g * new2);
        const Floats step = m / fma({_mm512_sqrt_ps(v.v)}, root, eps);
        const Floats moved = part(p.master) * decayed - rate * step;
        _mm512_mask_storeu_ps(p.first + i, some, m.v);
        _mm512_mask_storeu_ps(p.second + i, some, v.v);
        _mm512_mask_storeu_ps(p.master + i, some, moved.v);
        _mm256_mask_storeu_epi16(p.copy + i, some, to_bf16(moved));
    }
}

inline void adamw(const Parameter* parameters, int count, const AdamW& step, int threads) {
    struct Piece {
        int parameter;
        int64_t first, end;
    };
    std::vector<Piece> pieces;
    for (int i = 0; i < count; ++i)
        for (int64_t first = 0; first < parameters[i].size; first += kStretch)
            pieces.push_back({i, first, std::min(parameters[i].size, first + kStretch)});
    team_each(threads, static_cast<int>(pieces.size()), [&](int item) {
        const Piece& piece = pieces[static_cast<size_t>(item)];
        move(parameters[piece.parameter], step, piece.first, piece.end);
    });
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
