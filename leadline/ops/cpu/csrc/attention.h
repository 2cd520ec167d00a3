// Absorbed attention over cached rows: all heads read the same ones. A context is met in segments of 128 tokens, in
// ascending order; a segment's softmax is made at once and joined to the earlier ones'. So a query's result is the same
// whether segments are met by one thread after the other or made by several and joined afterwards.
#pragma once

#include "kernels.h"
#include "latent.h"
#include "rows.h"
#include "simd.h"

namespace leadline {
namespace LEADLINE_ISA {

template <bool HALF>
struct RowReader {
    static Floats read(const void* row, int k) {
        if (HALF) return load_bf16(static_cast<const uint16_t*>(row) + k);
        return load(static_cast<const float*>(row) + k);
    }
    static Floats read_some(const void* row, int k, int n) {
        if (!HALF) return load_some(static_cast<const float*>(row) + k, n);
        uint16_t lane[16] = {};
        std::memcpy(lane, static_cast<const uint16_t*>(row) + k, sizeof(uint16_t) * static_cast<size_t>(n));
        return load_bf16(lane);
    }
};

constexpr int kScoreBlock = 4;  // queries by tokens whose sums are in registers at a time
#if defined(LEADLINE_AVX512)
constexpr int kValueQueries = 8, kValueVectors = 3;
#else
constexpr int kValueQueries = 4, kValueVectors = 1;
#endif

template <bool HALF>
inline void scores_block(const float* const* q, const void* const* rows, int width, float scale,
                         float (&out)[kScoreBlock][kScoreBlock]) {
    Floats acc[kScoreBlock][kScoreBlock];
    for (auto& line : acc)
        for (Floats& each : line) each = zero();
    int k = 0;
    for (; k + 16 <= width; k += 16) {
        Floats r[kScoreBlock];
        for (int t = 0; t < kScoreBlock; ++t) r[t] = RowReader<HALF>::read(rows[t], k);
        for (int i = 0; i < kScoreBlock; ++i) {
            Floats x = load(q[i] + k);
            for (int t = 0; t < kScoreBlock; ++t) acc[i][t] = fma(x, r[t], acc[i][t]);
        }
    }
    if (k < width)
        for (int t = 0; t < kScoreBlock; ++t) {
            Floats r = RowReader<HALF>::read_some(rows[t], k, width - k);
            for (int i = 0; i < kScoreBlock; ++i) acc[i][t] = fma(load_some(q[i] + k, width - k), r, acc[i][t]);
        }
    for (int i = 0; i < kScoreBlock; ++i)
        for (int t = 0; t < kScoreBlock; ++t) out[i][t] = sum_lanes(acc[i][t]) * scale;
}

template <bool HALF, int QUERIES, int VECTORS>
inline void values_block(const float (*weights)[kSegment], const void* const* rows, int visible, int column, float* out,
                         int64_t stride) {
    Floats acc[QUERIES][VECTORS];
    for (auto& line : acc)
        for (Floats& each : line) each = zero();
    for (int t = 0; t < visible; ++t) {
        Floats r[VECTORS];
        for (int v = 0; v < VECTORS; ++v) r[v] = RowReader<HALF>::read(rows[t], column + 16 * v);
        for (int i = 0; i < QUERIES; ++i) {
            Floats p = set1(weights[i][t]);
            for (int v = 0; v < VECTORS; ++v) acc[i][v] = fma(p, r[v], acc[i][v]);
        }
    }
    for (int i = 0; i < QUERIES; ++i)
        for (int v = 0; v < VECTORS; ++v) store(out + i * stride + column + 16 * v, acc[i][v]);
}

template <bool HALF, int QUERIES>
inline void values(const float (*weights)[kSegment], const void* const* rows, int visible, int width, float* out,
                   int64_t stride) {
    int column = 0;
    for (; column + 16 * kValueVectors <= width; column += 16 * kValueVectors)
        values_block<HALF, QUERIES, kValueVectors>(weights, rows, visible, column, out, stride);
    for (; column + 16 <= width; column += 16)
        values_block<HALF, QUERIES, 1>(weights, rows, visible, column, out, stride);
    if (column < width)
        for (int i = 0; i < QUERIES; ++i) {
            Floats acc = zero();
            for (int t = 0; t < visible; ++t)
                acc = fma(set1(weights[i][t]), RowReader<HALF>::read_some(rows[t], column, width - column), acc);
            store_some(out + i * stride + column, acc, width - column);
        }
}

// Scores to weights over their greatest; returns it and their sum.
inline void soften(float* scores, int visible, float* most, float* sum) {
    float peak = scores[0];
    for (int t = 1; t < visible; ++t) peak = scores[t] > peak ? scores[t] : peak;
    Floats total = zero();
    each_vector(visible, [&](int i, int n) {
        float lane[16];
        store(lane, exp(load(scores + i) - set1(peak)));
        for (int j = n; j < 16; ++j) lane[j] = 0.0f;
        total = total + load(lane);
        store(scores + i, load(lane));
    });
    *most = peak;
    *sum = sum_lanes(total);
}

// Where the rows from `first` on are; packed ones are taken apart into `room`, (visible, width).
inline void find_rows(const Context& context, int64_t first, int visible, float* room, const void** rows) {
    const int size = context.page_size;
    for (int t = 0; t < visible; ++t) {
        const int64_t page = context.pages[(first + t) / size], offset = (first + t) % size;
        if (context.format != RowFormat::packed) {
            const size_t bytes = static_cast<size_t>(context.width) * (context.format == RowFormat::bf16 ? 2 : 4);
            rows[t] = static_cast<const char*>(context.rows) + static_cast<size_t>(page * size + offset) * bytes;
            continue;
        }
        const Latents& form = context.latents;
        const uint8_t* start = static_cast<const uint8_t*>(context.rows) + page * size * form.row_bytes();
        decode_row(start + offset * form.code_bytes(), start + size * form.code_bytes() + offset * form.scale_bytes(),
                   form, room + static_cast<int64_t>(t) * context.width);
        rows[t] = room + static_cast<int64_t>(t) * context.width;
    }
}

template <bool HALF>
void segment_of(const float* q, int64_t stride, int queries, float scale, const Context& context, const void** rows,
                int visible, float* out, int64_t out_stride, float* most, float* sum) {
    for (int t = visible; t < visible + kScoreBlock; ++t) rows[t] = rows[visible - 1];
    alignas(64) float weights[kHeads][kSegment];
    for (int i = 0; i < queries; i += kScoreBlock) {
        const float* lines[kScoreBlock];
        for (int j = 0; j < kScoreBlock; ++j) lines[j] = q + (i + j < queries ? i + j : queries - 1) * stride;
        for (int t = 0; t < visible; t += kScoreBlock) {
            float block[kScoreBlock][kScoreBlock];
            scores_block<HALF>(lines, rows + t, context.width, scale, block);
            for (int j = 0; j < kScoreBlock; ++j) std::memcpy(weights[i + j] + t, block[j], sizeof block[j]);
        }
    }
    for (int i = 0; i < queries; ++i) soften(weights[i], visible, most + i, sum + i);
    int i = 0;
    for (; i + kValueQueries <= queries; i += kValueQueries)
        values<HALF, kValueQueries>(weights + i, rows, visible, context.values, out + i * out_stride, out_stride);
    for (; i < queries; ++i) values<HALF, 1>(weights + i, rows, visible, context.values, out + i * out_stride, out_stride);
}

void segment(const float* q, int64_t stride, int queries, float scale, const Context& context, int64_t first,
             int visible, float* room, float* out, int64_t out_stride, float* most, float* sum) {
    const void* rows[kSegment + kScoreBlock];
    find_rows(context, first, visible, room, rows);
    (context.format == RowFormat::bf16 ? segment_of<true> : segment_of<false>)(q, stride, queries, scale, context, rows,
                                                                             visible, out, out_stride, most, sum);
}

inline float exp_of(float x) {
    float lane[16];
    store(lane, exp(set1(x)));
    return lane[0];
}

void join(float* out, float& most, float& sum, const float* next, float next_most, float next_sum, int width) {
    const float peak = next_most > most ? next_most : most;
    const float keep = exp_of(most - peak), take = exp_of(next_most - peak);
    each_vector(width, [&](int i, int n) {
        store_n(out + i, fma(load_n(out + i, n), set1(keep), load_n(next + i, n) * set1(take)), n);
    });
    sum = std::fma(sum, keep, next_sum * take);
    most = peak;
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
