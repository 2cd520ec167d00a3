// Causal attention of a training pass: no score ever leaves the cache, and the backward pass makes the weights again.
//
// Shapes: L tokens of a document, K and V widths of a head. One item of work is one head of one document.
#pragma once

#include <cmath>

#include "team.h"
#include "tiles.h"
#include "training.h"

namespace leadline {
namespace LEADLINE_ISA {

constexpr int kBlock = 64;        // queries, and in the backward pass keys, that are met at a time
constexpr int kStrip = 64 * 512;  // scores of a block of queries that are held at a time

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << (n < 0 ? 0 : n)) - 1); }

struct Document {
    int64_t start;
    int length, head;
};

inline Document document_of(const AttentionPass& pass, int item) {
    const int d = item / pass.heads;
    return {pass.starts[d], static_cast<int>(pass.starts[d + 1] - pass.starts[d]), item % pass.heads};
}

// Softmax of one query over its `visible` keys: weights over their greatest, in bf16, zeros up to `keys`; their sum.
inline float soften(const float* scores, int visible, int keys, float scale, uint16_t* weights, float& most) {
    Floats peak = set1(-INFINITY), sum = zero();
    for (int j = 0; j < visible; j += 16) {
        const Floats masked = {_mm512_mask_loadu_ps(peak.v, first_lanes(visible - j), scores + j)};
        peak = max(peak, masked);
    }
    most = max_lanes(peak) * scale;
    for (int j = 0; j < keys; j += 16) {
        const Floats weight = exp2(fma(load(scores + j), set1(scale * kLog2e), set1(-most * kLog2e)));
        const Floats kept = {_mm512_maskz_mov_ps(first_lanes(visible - j), weight.v)};
        sum = sum + kept;
        store_bf16(weights + j, kept);
    }
    return sum_lanes(sum);
}

inline void store_row(const float* x, float factor, int width, uint16_t* out) {
    for (int j = 0; j < width; j += 16) store_bf16(out + j, load(x + j) * set1(factor));
}

inline void attend_document(const AttentionPass& p, const Document& d) {
    const int length = round_up(d.length, 16);
    int block = kStrip / length / 8 * 8;
    block = block < 8 ? 8 : block > kBlock ? kBlock : block;
    Room& room = Room::open();
    const size_t strip = static_cast<size_t>(block) * static_cast<size_t>(length);
    uint16_t* keys = room.take<uint16_t>(panels_size(length, p.width / 2));
    uint16_t* values = room.take<uint16_t>(panels_size(p.values, length / 2));
    float* scores = room.take<float>(strip);
    uint16_t* weights = room.take<uint16_t>(strip);
    float* out = room.take<float>(static_cast<size_t>(block * p.values));
    pack_columns([&](int t) { return p.k.row(d.start + t, d.head); }, d.length, p.width, keys);
    pack_rows([&](int t) { return p.v.row(d.start + t, d.head); }, d.length, p.values, length / 2, values);
    for (int first = 0; first < d.length; first += block) {
        const int rows = d.length - first < block ? d.length - first : block, seen = round_up(first + rows, 16);
        const Left queries = Left::rows(p.q.row(d.start + first, d.head), p.q.token);
        product(queries, rows, Right::panels(keys, p.width / 2), seen / 16, p.width / 2, scores, length, false);
        float sums[kBlock];
        for (int r = 0; r < rows; ++r) {
            float most;
            sums[r] = soften(scores + r * length, first + r + 1, seen, p.scale, weights + r * length, most);
            p.sums[d.head * p.tokens() + d.start + first + r] = most + std::log(sums[r]);
        }
        product(Left::rows(weights, length), rows, Right::panels(values, length / 2), p.values / 16, seen / 2, out, p.values, false);
        for (int r = 0; r < rows; ++r)
            store_row(out + r * p.values, 1.0f / sums[r], p.values, p.out.row(d.start + first + r, d.head));
    }
}

inline void attention(const AttentionPass& pass, int threads) {
    team_each(threads, pass.documents * pass.heads, [&](int item) {
        const Document d = document_of(pass, item);
        if (d.length) attend_document(pass, d);
    });
}

// What one block of queries brings to the backward pass.
struct QueryBlock {
    int first, rows, padded;           // padded: rows up to whole panels, whose weights are zero
    uint16_t *q, *grad;                // panels of the queries and of the outputs' gradients
    float sums[kBlock], dots[kBlock];  // less the logarithms of the sums of weights, to base 2; output . its gradient
};

inline float dot(const uint16_t* x, const uint16_t* y, int width) {
    Floats sum = zero();
    for (int j = 0; j < width; j += 16) sum = fma(load_bf16(x + j), load_bf16(y + j), sum);
    return sum_lanes(sum);
}

inline void open_block(const AttentionPass& p, const Document& d, QueryBlock& b) {
    const int64_t start = d.start + b.first;
    pack_rows([&](int t) { return p.q.row(start + t, d.head); }, b.rows, p.width, b.padded / 2, b.q);
    pack_rows([&](int t) { return p.grad_out.row(start + t, d.head); }, b.rows, p.values, b.padded / 2, b.grad);
    for (int r = 0; r < b.padded; ++r) {
        const bool real = r < b.rows;
        b.sums[r] = real ? -kLog2e * p.sums[d.head * p.tokens() + start + r] : 0.0f;
        b.dots[r] = real ? dot(p.out.row(start + r, d.head), p.grad_out.row(start + r, d.head), p.values) : 0.0f;
    }
}

// A block of queries by a block of keys.
struct Square {
    float *scores, *grads;             // (kBlock, kBlock): scores; gradients of the weights
    uint16_t *weights, *grad_weights;  // panels: columns are keys, k queries
    uint16_t* grad_rows;               // (kBlock, kBlock): gradients of the scores
};

// Weights again, and the gradients of scores: w (g - sum w g), for two queries, a pair of k, at a time.
inline void weigh(const Square& s, const QueryBlock& b, int first_key, int keys, float scale) {
    for (int r = 0; r < b.padded; r += 2)
        for (int j = 0; j < keys; j += 16) {
            __m256i weight[2], grad[2];
            for (int i = 0; i < 2; ++i) {
                const int row = r + i;
                const __mmask16 seen = row < b.rows ? first_lanes(b.first + row + 1 - first_key - j) : 0;
                const Floats raw_weight = exp2(fma(load(s.scores + row * kBlock + j), set1(scale * kLog2e), set1(b.sums[row])));
                const Floats w = {_mm512_maskz_mov_ps(seen, raw_weight.v)};
                const Floats raw = w * (load(s.grads + row * kBlock + j) - set1(b.dots[row])) * set1(scale);
                const Floats g = {_mm512_maskz_mov_ps(seen, raw.v)};
                weight[i] = to_bf16(w), grad[i] = to_bf16(g);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(s.grad_rows + row * kBlock + j), grad[i]);
            }
            const int64_t at = (static_cast<int64_t>(j / 16) * (b.padded / 2) + r / 2) * 32;
            _mm512_storeu_si512(s.weights + at, interleave(weight[0], weight[1]));
            _mm512_storeu_si512(s.grad_weights + at, interleave(grad[0], grad[1]));
        }
}

inline void attend_document_backward(const AttentionPass& p, const Document& d) {
    const int length = round_up(d.length, 16), width = p.width, values = p.values;
    const size_t square = static_cast<size_t>(kBlock) * kBlock, rows = static_cast<size_t>(length);
    const size_t key_panels = panels_size(length, width / 2), value_panels = panels_size(length, values / 2);
    Room& room = Room::open();
    uint16_t *keys = room.take<uint16_t>(key_panels), *keys_across = room.take<uint16_t>(key_panels);
    uint16_t* values_across = room.take<uint16_t>(value_panels);
    Square s;
    s.scores = room.take<float>(square), s.grads = room.take<float>(square);
    s.weights = room.take<uint16_t>(square), s.grad_weights = room.take<uint16_t>(square);
    s.grad_rows = room.take<uint16_t>(square);
    QueryBlock b;
    b.q = room.take<uint16_t>(panels_size(width, kBlock / 2));
    b.grad = room.take<uint16_t>(panels_size(values, kBlock / 2));
    float* grad_q = room.take<float>(static_cast<size_t>(kBlock * width));
    float *grad_k = room.take<float>(rows * static_cast<size_t>(width)), *grad_v = room.take<float>(rows * static_cast<size_t>(values));
    std::memset(grad_k, 0, rows * static_cast<size_t>(width) * sizeof(float));
    std::memset(grad_v, 0, rows * static_cast<size_t>(values) * sizeof(float));
    const auto key_at = [&](int t) { return p.k.row(d.start + t, d.head); };
    pack_columns(key_at, d.length, width, keys_across);
    pack_rows(key_at, d.length, width, length / 2, keys);
    pack_columns([&](int t) { return p.v.row(d.start + t, d.head); }, d.length, values, values_across);
    for (b.first = 0; b.first < d.length; b.first += kBlock) {
        b.rows = d.length - b.first < kBlock ? d.length - b.first : kBlock, b.padded = round_up(b.rows, 16);
        open_block(p, d, b);
        const Left queries = Left::rows(p.q.row(d.start + b.first, d.head), p.q.token);
        const Left grads = Left::rows(p.grad_out.row(d.start + b.first, d.head), p.grad_out.token);
        for (int first = 0; first < b.first + b.rows; first += kBlock) {
            const int some = length - first < kBlock ? length - first : kBlock;
            const Right k_panels = Right::panels(keys_across + panels_size(first, width / 2), width / 2);
            const Right v_panels = Right::panels(values_across + panels_size(first, values / 2), values / 2);
            product(queries, b.rows, k_panels, some / 16, width / 2, s.scores, kBlock, false);
            product(grads, b.rows, v_panels, some / 16, values / 2, s.grads, kBlock, false);
            weigh(s, b, first, some, p.scale);
            product(Left::rows(s.grad_rows, kBlock), b.rows, Right::panels(keys, length / 2).from(first / 2), width / 16, some / 2,
                    grad_q, width, first > 0);
            product(Left::panels(s.grad_weights, b.padded / 2), some, Right::panels(b.q, b.padded / 2), width / 16, b.padded / 2,
                    grad_k + static_cast<int64_t>(first) * width, width, true);
            product(Left::panels(s.weights, b.padded / 2), some, Right::panels(b.grad, b.padded / 2), values / 16, b.padded / 2,
                    grad_v + static_cast<int64_t>(first) * values, values, true);
        }
        for (int r = 0; r < b.rows; ++r)
            store_row(grad_q + r * width, 1.0f, width, p.grad_q.row(d.start + b.first + r, d.head));
    }
    for (int t = 0; t < d.length; ++t) {
        store_row(grad_k + static_cast<int64_t>(t) * width, 1.0f, width, p.grad_k.row(d.start + t, d.head));
        store_row(grad_v + static_cast<int64_t>(t) * values, 1.0f, values, p.grad_v.row(d.start + t, d.head));
    }
}

inline void attention_backward(const AttentionPass& pass, int threads) {
    team_each(threads, pass.documents * pass.heads, [&](int item) {
        const Document d = document_of(pass, item);
        if (d.length) attend_document_backward(pass, d);
    });
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
