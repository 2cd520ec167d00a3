// What a training pass in bf16 asks of the processor. Every kernel has a PyTorch reference, an op of leadline/ops, whose
// values it gives up to the rounding of bf16; sums are float32.
#pragma once

#include <cstdint>

namespace leadline {

// bf16 vectors of every token and head; strides in elements.
struct Heads {
    uint16_t* at = nullptr;
    int64_t token = 0, head = 0;

    uint16_t* row(int64_t t, int64_t h) const { return at + t * token + h * head; }
};

// Causal attention within documents: document d holds tokens starts[d] .. starts[d + 1].
struct AttentionPass {
    const int64_t* starts = nullptr;
    int documents = 0, heads = 0, width = 0, values = 0;
    float scale = 1.0f;
    Heads q, k, v, out;
    float* sums = nullptr;  // (heads, tokens): the logarithm of each query's sum of weights
    Heads grad_out, grad_q, grad_k, grad_v;

    int64_t tokens() const { return starts[documents]; }
};

// The routed experts of a pass; an id of `experts` is no expert.
struct ExpertsPass {
    int tokens = 0, slots = 0, experts = 0, width = 0, inner = 0;
    const int64_t* ids = nullptr;         // (tokens, slots)
    const float* gates = nullptr;         // (tokens, slots)
    const uint16_t* x = nullptr;          // (tokens, width)
    const uint16_t* gate_up = nullptr;    // (experts, 2 inner, width)
    const uint16_t* down = nullptr;       // (experts, width, inner)
    uint16_t* hidden = nullptr;           // (pairs, 2 inner), kept for the backward pass, in the experts' order
    uint16_t* rows = nullptr;             // (pairs, width): room for what is summed over a token's pairs
    uint16_t* out = nullptr;              // (tokens, width)
    const uint16_t* grad_out = nullptr;   // (tokens, width)
    uint16_t* grad_x = nullptr;           // as x, gates, gate_up and down
    float* grad_gates = nullptr;
    uint16_t* grad_gate_up = nullptr;
    uint16_t* grad_down = nullptr;
};

constexpr int kNormRows = 256;  // of a stretch whose part of the weight's gradient is summed by itself

// RMSNorm of rows that lie `stride` elements apart.
struct NormPass {
    const uint16_t *x = nullptr, *weight = nullptr, *grad_out = nullptr;
    int64_t stride = 0;
    int rows = 0, width = 0;
    float eps = 0.0f;
    float* scales = nullptr;        // (rows,): 1 / rms, kept for the backward pass
    uint16_t *out = nullptr, *grad_x = nullptr;
    float* grad_weights = nullptr;  // (stretches, width)
};

struct TrainingKernels {
    void (*attention)(const AttentionPass& pass, int threads);
    void (*attention_backward)(const AttentionPass& pass, int threads);
    void (*experts)(const ExpertsPass& pass, int threads);
    void (*experts_backward)(const ExpertsPass& pass, int threads);

    void (*norm)(const NormPass& pass, int threads);
    void (*norm_backward)(const NormPass& pass, int threads);

    // scale x -log softmax(logits)[target] of each row, and its gradient (rows, columns).
    void (*softmax_nll)(const uint16_t* logits, const int64_t* targets, const float* scales, int rows, int64_t columns,
                        float* losses, uint16_t* grads, int threads);
};

const TrainingKernels* avx512_bf16_kernels();  // null where the machine or the build has none

}  // namespace leadline
