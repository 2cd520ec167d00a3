// The routed experts of a training pass: each expert's rows are gathered, met with its weights and summed by token without
// a copy of all rows in between; the backward pass makes the weights' gradients while the rows are in the cache.
//
// Shapes: T tokens, K slots, D width, F inner width, N pairs of token and slot in the experts' order.
#pragma once

#include <algorithm>
#include <vector>

#include "team.h"
#include "tiles.h"
#include "training.h"

namespace leadline {
namespace LEADLINE_ISA {

constexpr int kRows = 64;     // of an expert that are met with its weights at a time
constexpr int kChunk = 256;   // rows whose products with each other are added to the weights' gradients at a time

// Pairs sorted by expert, tokens ascending within each: those of expert e are pairs[starts[e] .. starts[e + 1]).
struct Order {
    std::vector<int> starts, pairs, places;  // places: where each pair lies, or -1 for one that was dropped
    std::vector<int> largest;                // experts, those with the most rows first

    explicit Order(const ExpertsPass& p) : starts(static_cast<size_t>(p.experts) + 1) {
        const int all = p.tokens * p.slots;
        std::vector<int> next(static_cast<size_t>(p.experts) + 1);
        for (int i = 0; i < all; ++i)
            if (p.ids[i] < p.experts) ++next[static_cast<size_t>(p.ids[i])];
        for (size_t e = 0, sum = 0; e <= static_cast<size_t>(p.experts); ++e) {
            const int count = next[e];
            starts[e] = next[e] = static_cast<int>(sum);
            sum += static_cast<size_t>(count);
        }
        pairs.resize(static_cast<size_t>(starts.back()));
        places.assign(static_cast<size_t>(all), -1);
        for (int i = 0; i < all; ++i)
            if (p.ids[i] < p.experts) {
                const int place = next[static_cast<size_t>(p.ids[i])]++;
                pairs[static_cast<size_t>(place)] = i, places[static_cast<size_t>(i)] = place;
            }
        for (int e = 0; e < p.experts; ++e) largest.push_back(e);
        std::stable_sort(largest.begin(), largest.end(), [&](int a, int b) { return count(a) > count(b); });
    }
    int count(int e) const { return starts[static_cast<size_t>(e) + 1] - starts[static_cast<size_t>(e)]; }
};

// 1 / (1 + e^-x): an estimate of 14 bits and one step of Newton's.
inline Floats sigmoid(Floats x) {
    const Floats by = set1(1.0f) + exp2(min(set1(126.0f), x * set1(-kLog2e))), near = {_mm512_rcp14_ps(by.v)};
    return near * (set1(2.0f) - by * near);
}

// hidden = (gate ; up): both to bf16, and silu(gate) up.
inline void activate(const float* hidden, int inner, uint16_t* kept, uint16_t* activation) {
    for (int j = 0; j < inner; j += 16) {
        store_bf16(kept + j, load(hidden + j));
        store_bf16(kept + inner + j, load(hidden + inner + j));
        const Floats gate = load_bf16(kept + j), up = load_bf16(kept + inner + j);
        store_bf16(activation + j, gate * sigmoid(gate) * up);
    }
}

// An expert's part of a pass.
struct Expert {
    int index, start, count;  // its pairs are pairs[start .. start + count)
    const int* pairs;
    const uint16_t *gate_up, *down;

    Expert(const ExpertsPass& p, const Order& order, int e)
        : index(e), start(order.starts[static_cast<size_t>(e)]), count(order.count(e)), pairs(order.pairs.data() + start) {
        const int64_t size = static_cast<int64_t>(p.inner) * p.width;
        gate_up = p.gate_up + 2 * e * size, down = p.down + e * size;
    }
};

inline auto rows_of(const uint16_t* x, int stride) {
    return [=](int r) { return x + static_cast<int64_t>(r) * stride; };
}

// The rows of the tokens of these pairs.
inline auto tokens_of(const uint16_t* x, int stride, const int* pairs, int slots) {
    return [=](int r) { return x + static_cast<int64_t>(pairs[r] / slots) * stride; };
}

template <class RowAt>
void gather(const RowAt& row_at, int rows, int width, uint16_t* out) {
    for (int r = 0; r < rows; ++r) std::memcpy(out + r * width, row_at(r), 2 * static_cast<size_t>(width));
}

inline void to_bf16(const float* x, int64_t size, uint16_t* out) {
    for (int64_t i = 0; i < size; i += 16) store_bf16(out + i, load(x + i));
}

inline void expert_forward(const ExpertsPass& p, const Expert& e) {
    const int width = p.width, inner = p.inner;
    const size_t w = static_cast<size_t>(width), f = static_cast<size_t>(inner);
    Room& room = Room::open();
    uint16_t *gate_up = room.take<uint16_t>(2 * f * w), *down = room.take<uint16_t>(f * w);
    uint16_t *x = room.take<uint16_t>(kRows * w), *activation = room.take<uint16_t>(kRows * f);
    float *hidden = room.take<float>(kRows * 2 * f), *y = room.take<float>(kRows * w);
    pack_columns(rows_of(e.gate_up, width), 2 * inner, width, gate_up);
    pack_columns(rows_of(e.down, inner), width, inner, down);
    for (int first = 0; first < e.count; first += kRows) {
        const int rows = std::min(kRows, e.count - first);
        const int64_t at = e.start + first;
        gather(tokens_of(p.x, width, e.pairs + first, p.slots), rows, width, x);
        product(Left::rows(x, width), rows, Right::panels(gate_up, width / 2), inner / 8, width / 2, hidden, 2 * inner, false);
        for (int r = 0; r < rows; ++r)
            activate(hidden + r * 2 * inner, inner, p.hidden + (at + r) * 2 * inner, activation + r * inner);
        product(Left::rows(activation, inner), rows, Right::panels(down, inner / 2), width / 16, inner / 2, y, width, false);
        to_bf16(y, static_cast<int64_t>(rows) * width, p.rows + at * width);
    }
}

// Each token's sum over its pairs' rows, times the gates where there are any.
inline void combine_rows(const ExpertsPass& p, const Order& order, const float* gates, uint16_t* out, int threads) {
    constexpr int kTokens = 64;
    team_each(threads, (p.tokens + kTokens - 1) / kTokens, [&](int item) {
        const int end = std::min(p.tokens, (item + 1) * kTokens);
        for (int64_t t = item * kTokens; t < end; ++t)
            for (int j = 0; j < p.width; j += 16) {
                Floats sum = zero();
                for (int64_t i = t * p.slots; i < (t + 1) * p.slots; ++i) {
                    const int64_t place = order.places[static_cast<size_t>(i)];
                    if (place >= 0) sum = fma(load_bf16(p.rows + place * p.width + j), set1(gates ? gates[i] : 1.0f), sum);
                }
                store_bf16(out + t * p.width + j, sum);
            }
    });
}

inline void experts(const ExpertsPass& p, int threads) {
    const Order order(p);
    team_each(threads, p.experts, [&](int item) { expert_forward(p, {p, order, order.largest[static_cast<size_t>(item)]}); });
    combine_rows(p, order, p.gates, p.out, threads);
}

// Of one row: the gate's gradient; gradients of (gate ; up) over the sum's; the activation times its gate in the sum.
inline float activate_backward(const uint16_t* hidden, const float* grad, float weight, int inner, uint16_t* grad_hidden,
                               uint16_t* activation) {
    Floats sum = zero();
    for (int j = 0; j < inner; j += 16) {
        const Floats gate = load_bf16(hidden + j), up = load_bf16(hidden + inner + j), s = sigmoid(gate), silu = gate * s;
        const Floats raw = load(grad + j), g = raw * set1(weight), by_gate = s + silu * (set1(1.0f) - s);
        sum = fma(raw, silu * up, sum);
        store_bf16(grad_hidden + j, g * up * by_gate);
        store_bf16(grad_hidden + inner + j, g * silu);
        store_bf16(activation + j, silu * up * set1(weight));
    }
    return sum_lanes(sum);
}

// What the backward pass of an expert works in.
struct ExpertRoom {
    uint16_t *gate_up, *down;                  // panels
    uint16_t *x, *grad_out, *grad_hidden, *activation;  // panels of a chunk's rows, for the weights' gradients
    uint16_t *out_rows, *hidden_rows, *activation_rows;
    float *grad_activation, *grad_x, *sum_gate_up, *sum_down;

    explicit ExpertRoom(const ExpertsPass& p) {
        const size_t w = static_cast<size_t>(p.width), f = static_cast<size_t>(p.inner);
        Room& room = Room::open();
        gate_up = room.take<uint16_t>(2 * f * w), down = room.take<uint16_t>(f * w);
        x = room.take<uint16_t>(kChunk * w), grad_out = room.take<uint16_t>(kChunk * w);
        grad_hidden = room.take<uint16_t>(kChunk * 2 * f), activation = room.take<uint16_t>(kChunk * f);
        out_rows = room.take<uint16_t>(kRows * w);
        hidden_rows = room.take<uint16_t>(kChunk * 2 * f), activation_rows = room.take<uint16_t>(kChunk * f);
        grad_activation = room.take<float>(kRows * f), grad_x = room.take<float>(kRows * w);
        sum_gate_up = room.take<float>(2 * f * w), sum_down = room.take<float>(f * w);
    }
};

// The gradients of `rows` pairs from `first` of a chunk on, but for the weights'.
inline void rows_backward(const ExpertsPass& p, const Expert& e, const ExpertRoom& room, int begin, int first, int rows) {
    const int width = p.width, inner = p.inner;
    const int* pairs = e.pairs + begin + first;
    const int64_t at = e.start + begin + first;
    uint16_t* grad_hidden = room.hidden_rows + first * 2 * inner;
    gather(tokens_of(p.grad_out, width, pairs, p.slots), rows, width, room.out_rows);
    product(Left::rows(room.out_rows, width), rows, Right::panels(room.down, width / 2), inner / 16, width / 2, room.grad_activation,
            inner, false);
    for (int r = 0; r < rows; ++r)
        p.grad_gates[pairs[r]] =
            activate_backward(p.hidden + (at + r) * 2 * inner, room.grad_activation + r * inner, p.gates[pairs[r]], inner,
                              grad_hidden + r * 2 * inner, room.activation_rows + (first + r) * inner);
    product(Left::rows(grad_hidden, 2 * inner), rows, Right::panels(room.gate_up, inner), width / 16, inner, room.grad_x, width, false);
    to_bf16(room.grad_x, static_cast<int64_t>(rows) * width, p.rows + at * width);
}

inline void expert_backward(const ExpertsPass& p, const Expert& e) {
    const int width = p.width, inner = p.inner;
    const int64_t size = static_cast<int64_t>(inner) * width;
    const ExpertRoom room(p);
    pack_rows(rows_of(e.gate_up, width), 2 * inner, width, inner, room.gate_up);
    pack_rows(rows_of(e.down, inner), width, inner, width / 2, room.down);
    std::fill_n(room.sum_gate_up, e.count ? 0 : 2 * size, 0.0f);
    std::fill_n(room.sum_down, e.count ? 0 : size, 0.0f);
    for (int begin = 0; begin < e.count; begin += kChunk) {
        const int some = std::min(kChunk, e.count - begin), pairs = (some + 1) / 2;
        for (int first = 0; first < some; first += kRows) rows_backward(p, e, room, begin, first, std::min(kRows, some - first));
        pack_rows(tokens_of(p.x, width, e.pairs + begin, p.slots), some, width, pairs, room.x);
        pack_rows(tokens_of(p.grad_out, width, e.pairs + begin, p.slots), some, width, pairs, room.grad_out);
        pack_rows(rows_of(room.hidden_rows, 2 * inner), some, 2 * inner, pairs, room.grad_hidden);
        pack_rows(rows_of(room.activation_rows, inner), some, inner, pairs, room.activation);
        product(Left::panels(room.grad_hidden, pairs), 2 * inner, Right::panels(room.x, pairs), width / 16, pairs, room.sum_gate_up,
                width, begin > 0);
        product(Left::panels(room.grad_out, pairs), width, Right::panels(room.activation, pairs), inner / 16, pairs, room.sum_down,
                inner, begin > 0);
    }
    to_bf16(room.sum_gate_up, 2 * size, p.grad_gate_up + 2 * e.index * size);
    to_bf16(room.sum_down, size, p.grad_down + e.index * size);
}

inline void experts_backward(const ExpertsPass& p, int threads) {
    const Order order(p);
    std::fill_n(p.grad_gates, static_cast<int64_t>(p.tokens) * p.slots, 0.0f);  // of pairs that were dropped
    team_each(threads, p.experts, [&](int item) { expert_backward(p, {p, order, order.largest[static_cast<size_t>(item)]}); });
    combine_rows(p, order, nullptr, p.grad_x, threads);
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
