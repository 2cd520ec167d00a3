// Causal attention of a training pass: no score ever leaves the cache, and the backward pass makes the weights again.
//
// Shapes: L tokens of a document, K and V widths of a head. One item of work is one head of one document.
#pragma once

#include <algorithm>
#include <cmath>

#include "team.h"
#include "tiles.h"
#include "training.h"

namespace leadline {
namespace LEADLINE_ISA {

constexpr int kQueries = 16;  // that are met with all keys before them at a time
constexpr int kBlock = 64;    // queries, and keys, that are met at a time in the backward pass

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
    const int length = round_up(d.length, 16), width = p.width, values = p.values;
    const size_t strip = static_cast<size_t>(kQueries) * static_cast<size_t>(length);
    Room& room = Room::open();
    uint16_t* k_panels = room.take<uint16_t>(panels_size(length, width / 2));
    uint16_t* v_panels = room.take<uint16_t>(panels_size(values, length / 2));
    float *scores = room.take<float>(strip), *out = room.take<float>(kQueries * static_cast<size_t>(values));
    uint16_t* weights = room.take<uint16_t>(strip);
    pack_columns([&](int t) { return p.k.row(d.start + t, d.head); }, d.length, width, k_panels);
    pack_rows([&](int t) { return p.v.row(d.start + t, d.head); }, d.length, values, length / 2, v_panels);
    for (int first = 0; first < d.length; first += kQueries) {
        const int rows = std::min(kQueries, d.length - first), seen = first + kQueries;
        const int64_t start = d.start + first;
        product(Left::rows(p.q.row(start, d.head), p.q.token), rows, Right::panels(k_panels, width / 2), seen / 16, width / 2,
                scores, length, false);
        float sums[kQueries];
        for (int r = 0; r < rows; ++r) {
            float most;
            sums[r] = soften(scores + r * length, first + r + 1, seen, p.scale, weights + r * length, most);
            p.sums[d.head * p.tokens() + start + r] = most + std::log(sums[r]);
        }
        product(Left::rows(weights, length), rows, Right::panels(v_panels, length / 2), values / 16, seen / 2, out, values, false);
        for (int r = 0; r < rows; ++r) store_row(out + r * values, 1.0f / sums[r], values, p.out.row(start + r, d.head));
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

// Weights again, and the gradients of scores: w (g - sum w g), for two queries, a pair of k, at a time; on the diagonal
// only keys up to the last panel that the queries see.
inline void weigh(const Square& s, const QueryBlock& b, int first_key, int keys, float scale) {
    for (int r = 0; r < b.padded; r += 2) {
        const int seen = std::min(keys, round_up(b.first + r + 2 - first_key, 16));
        for (int j = 0; j < seen; j += 16) {
            __m256i weight[2], grad[2];
            for (int i = 0; i < 2; ++i) {
                const int row = r + i;
                const __mmask16 mask = row < b.rows ? first_lanes(b.first + row + 1 - first_key - j) : 0;
                const Floats raw_weight = exp2(fma(load(s.scores + row * kBlock + j), set1(scale * kLog2e), set1(b.sums[row])));
                const Floats w = {_mm512_maskz_mov_ps(mask, raw_weight.v)};
                const Floats raw = w * (load(s.grads + row * kBlock + j) - set1(b.dots[row])) * set1(scale);
                const Floats g = {_mm512_maskz_mov_ps(mask, raw.v)};
                weight[i] = to_bf16(w), grad[i] = to_bf16(g);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(s.grad_rows + row * kBlock + j), grad[i]);
            }
            const int64_t at = (static_cast<int64_t>(j / 16) * (b.padded / 2) + r / 2) * 32;
            _mm512_storeu_si512(s.weights + at, interleave(weight[0], weight[1]));
            _mm512_storeu_si512(s.grad_weights + at, interleave(grad[0], grad[1]));
        }
    }
}

// What a document's head works in: panels of its keys and values, sums of their gradients.
struct DocumentRoom {
    uint16_t *k_rows, *k_columns, *v_columns;
    float *grad_q, *grad_k, *grad_v;
};

// A block of queries and a block of keys: gradients added to the queries' and the keys'. On the diagonal queries go
// sixteen at a time with the keys up to their own, and keys with the queries from their own on.
inline void meet(const AttentionPass& p, const Document& d, const QueryBlock& b, const Square& s, const DocumentRoom& room,
                 int first, int keys) {
    const int width = p.width, values = p.values, length = round_up(d.length, 16);
    const Left queries = Left::rows(p.q.row(d.start + b.first, d.head), p.q.token);
    const Left grads = Left::rows(p.grad_out.row(d.start + b.first, d.head), p.grad_out.token);
    const Right k = Right::panels(room.k_columns + panels_size(first, width / 2), width / 2);
    const Right v = Right::panels(room.v_columns + panels_size(first, values / 2), values / 2);
    const int pairs = b.padded / 2, step = first == b.first ? 16 : kBlock;
    for (int r = 0; r < b.rows; r += step) {
        const int rows = std::min(step, b.rows - r), seen = std::min(keys, r + step);
        product(queries.from(r), rows, k, seen / 16, width / 2, s.scores + r * kBlock, kBlock, false);
        product(grads.from(r), rows, v, seen / 16, values / 2, s.grads + r * kBlock, kBlock, false);
    }
    weigh(s, b, first, keys, p.scale);
    for (int r = 0; r < b.rows; r += step)
        product(Left::rows(s.grad_rows, kBlock).from(r), std::min(step, b.rows - r), Right::panels(room.k_rows, length / 2).from(first / 2),
                width / 16, std::min(keys, r + step) / 2, room.grad_q + r * width, width, first > 0);
    for (int j = 0; j < keys; j += step) {
        const int some = std::min(step, keys - j), from = step == 16 ? j / 2 : 0;
        const int64_t key = first + j;
        product(Left::panels(s.grad_weights, pairs).from(j, from), some, Right::panels(b.q, pairs).from(from), width / 16, pairs - from,
                room.grad_k + key * width, width, true);
        product(Left::panels(s.weights, pairs).from(j, from), some, Right::panels(b.grad, pairs).from(from), values / 16, pairs - from,
                room.grad_v + key * values, values, true);
    }
}

inline void attend_document_backward(const AttentionPass& p, const Document& d) {
    const int length = round_up(d.length, 16), width = p.width, values = p.values;
    const size_t square = static_cast<size_t>(kBlock) * kBlock, w = static_cast<size_t>(width), rows = static_cast<size_t>(length);
    Room& memory = Room::open();
    DocumentRoom room;
    room.k_rows = memory.take<uint16_t>(rows * w), room.k_columns = memory.take<uint16_t>(rows * w);
    room.v_columns = memory.take<uint16_t>(rows * static_cast<size_t>(values));
    room.grad_q = memory.take<float>(kBlock * w), room.grad_k = memory.take<float>(rows * w);
    room.grad_v = memory.take<float>(rows * static_cast<size_t>(values));
    Square s;
    s.scores = memory.take<float>(square), s.grads = memory.take<float>(square);
    s.weights = memory.take<uint16_t>(square), s.grad_weights = memory.take<uint16_t>(square);
    s.grad_rows = memory.take<uint16_t>(square);
    QueryBlock b;
    b.q = memory.take<uint16_t>(kBlock * w), b.grad = memory.take<uint16_t>(kBlock * static_cast<size_t>(values));
    std::fill_n(room.grad_k, rows * w, 0.0f);
    std::fill_n(room.grad_v, rows * static_cast<size_t>(values), 0.0f);
    const auto key_at = [&](int t) { return p.k.row(d.start + t, d.head); };
    pack_rows(key_at, d.length, width, length / 2, room.k_rows);
    pack_columns(key_at, d.length, width, room.k_columns);
    pack_columns([&](int t) { return p.v.row(d.start + t, d.head); }, d.length, values, room.v_columns);
    for (b.first = 0; b.first < d.length; b.first += kBlock) {
        b.rows = std::min(kBlock, d.length - b.first), b.padded = round_up(b.rows, 16);
        open_block(p, d, b);
        for (int first = 0; first <= b.first; first += kBlock) meet(p, d, b, s, room, first, std::min(kBlock, length - first));
        for (int r = 0; r < b.rows; ++r)
            store_row(room.grad_q + r * width, 1.0f, width, p.grad_q.row(d.start + b.first + r, d.head));
    }
    for (int64_t t = 0; t < d.length; ++t) {
        store_row(room.grad_k + t * width, 1.0f, width, p.grad_k.row(d.start + t, d.head));
        store_row(room.grad_v + t * values, 1.0f, values, p.grad_v.row(d.start + t, d.head));
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
