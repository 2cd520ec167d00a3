// Absorbed attention over cached rows: all heads read the same ones. A context is met in segments of 128 tokens, in
// ascending order; a segment's softmax is made at once and joined to the earlier ones'. So a query's result is the same
// whether segments are met by one thread after the other or made by several and joined afterwards.
//
// Rows of bfloat16 are multiplied as VDPBF16PS does it, whose rounding is defined: without the instruction two
// multiply-adds give the same bits. Rows of float32, and those that were packed in fewer bits, stay float32 throughout.
#pragma once

#include "kernels.h"
#include "latent.h"
#include "simd.h"

namespace leadline {
namespace LEADLINE_ISA {

constexpr int kScoreBlock = 4;  // queries by tokens whose sums are in registers at a time
#if defined(LEADLINE_AVX512)
constexpr int kValueQueries = 8, kValueVectors = 3;
#else
constexpr int kValueQueries = 4, kValueVectors = 1;
#endif
using Scores = Floats[kScoreBlock][kScoreBlock];

// What is read next, asked for a line at a time between products.
class Lines {
  public:
    explicit Lines(const Context& context)
        : next_(context.ahead ? context.ahead : static_cast<const char*>(context.rows)), end_(next_ + context.ahead_bytes) {}
    void ask() {
        __builtin_prefetch(next_);
        next_ += next_ < end_ ? 64 : 0;
    }

  private:
    const char *next_, *end_;
};

// ---- products of float32, with rows of either kind -----------------------------------------------------------------

inline void dot_rows(const float* const* q, const float* const* rows, int width, Scores& acc) {
    int k = 0;
    for (; k + 16 <= width; k += 16) {
        Floats r[kScoreBlock];
        for (int t = 0; t < kScoreBlock; ++t) r[t] = load(rows[t] + k);
        for (int i = 0; i < kScoreBlock; ++i) {
            Floats x = load(q[i] + k);
            for (int t = 0; t < kScoreBlock; ++t) acc[i][t] = fma(x, r[t], acc[i][t]);
        }
    }
    if (k < width)
        for (int t = 0; t < kScoreBlock; ++t) {
            Floats r = load_some(rows[t] + k, width - k);
            for (int i = 0; i < kScoreBlock; ++i) acc[i][t] = fma(load_some(q[i] + k, width - k), r, acc[i][t]);
        }
}

inline Floats read(const float* p) { return load(p); }
inline Floats read(const uint16_t* p) { return load_bf16(p); }
inline Floats read_some(const float* p, int n) { return load_some(p, n); }
inline Floats read_some(const uint16_t* p, int n) {
    uint16_t x[16] = {};
    std::memcpy(x, p, sizeof(uint16_t) * static_cast<size_t>(n));
    return load_bf16(x);
}

// Tokens in the order in which they are added up: of bfloat16 the odd one of two comes first, and the last one may have
// a neighbour of no weight.
template <class ROW, class Function>
inline void each_token(int visible, Function f) {
    if (sizeof(ROW) == 4)
        for (int t = 0; t < visible; ++t) f(t);
    else
        for (int t = 0; t < visible; t += 2) f(t + 1), f(t);
}

template <int QUERIES, int VECTORS, class ROW>
inline void values_block(const float (*weights)[kSegment], const ROW* const* rows, int visible, int column, float* out,
                         int64_t stride, Lines& lines) {
    Floats acc[QUERIES][VECTORS];
    for (auto& line : acc)
        for (Floats& each : line) each = zero();
    each_token<ROW>(visible, [&](int t) {
        Floats r[VECTORS];
        lines.ask();
        for (int v = 0; v < VECTORS; ++v) r[v] = read(rows[t] + column + 16 * v);
        for (int i = 0; i < QUERIES; ++i) {
            Floats p = set1(weights[i][t]);
            for (int v = 0; v < VECTORS; ++v) acc[i][v] = fma(p, r[v], acc[i][v]);
        }
    });
    for (int i = 0; i < QUERIES; ++i)
        for (int v = 0; v < VECTORS; ++v) store(out + i * stride + column + 16 * v, acc[i][v]);
}

template <int QUERIES, class ROW>
inline void values(const float (*weights)[kSegment], const ROW* const* rows, int visible, int width, float* out,
                   int64_t stride, Lines& lines) {
    int column = 0;
    for (; column + 16 * kValueVectors <= width; column += 16 * kValueVectors)
        values_block<QUERIES, kValueVectors>(weights, rows, visible, column, out, stride, lines);
    for (; column + 16 <= width; column += 16)
        values_block<QUERIES, 1>(weights, rows, visible, column, out, stride, lines);
    if (column < width)
        for (int i = 0; i < QUERIES; ++i) {
            Floats acc = zero();
            each_token<ROW>(visible, [&](int t) {
                acc = fma(set1(weights[i][t]), read_some(rows[t] + column, width - column), acc);
            });
            store_some(out + i * stride + column, acc, width - column);
        }
}

// ---- products of bfloat16 ------------------------------------------------------------------------------------------
// `Number` is how a query or a weight is kept that was rounded to it. A query's columns are padded with zeros to whole
// vectors of pairs.

inline int up_to_pairs(int width) { return (width + 31) / 32 * 32; }

#if defined(LEADLINE_BF16)
using Number = uint16_t;

inline Pairs load_pairs_some(const uint16_t* p, int n) {
    uint16_t x[32] = {};
    std::memcpy(x, p, sizeof(uint16_t) * static_cast<size_t>(n));
    return load_pairs(x);
}

template <class Load>
inline void dot_columns(const Number* const* q, const uint16_t* const* rows, int column, Load pairs, Scores& acc) {
    Pairs r[kScoreBlock];
    for (int t = 0; t < kScoreBlock; ++t) r[t] = pairs(rows[t] + column);
    for (int i = 0; i < kScoreBlock; ++i) {
        Pairs x = load_pairs(q[i] + column);
        for (int t = 0; t < kScoreBlock; ++t) acc[i][t] = dot_pairs(acc[i][t], x, r[t]);
    }
}

inline void dot_rows(const Number* const* q, const uint16_t* const* rows, int width, Scores& acc) {
    int k = 0;
    for (; k + 32 <= width; k += 32) dot_columns(q, rows, k, load_pairs, acc);
    if (k < width) dot_columns(q, rows, k, [=](const uint16_t* p) { return load_pairs_some(p, width - k); }, acc);
}

// Up to 32 columns.
template <int QUERIES, class Load>
inline void values_block(const Number (*weights)[kSegment], const uint16_t* const* rows, int visible, int column,
                         Load pairs, Floats (&acc)[QUERIES][2], Lines& lines) {
    for (auto& line : acc) line[0] = zero(), line[1] = zero();
    for (int t = 0; t < visible; t += 2) {
        Pairs r[2];
        lines.ask();
        interleave(pairs(rows[t] + column), pairs(rows[t + 1] + column), r[0], r[1]);
        for (int i = 0; i < QUERIES; ++i) {
            Pairs p = set1_pair(weights[i] + t);
            for (int v = 0; v < 2; ++v) acc[i][v] = dot_pairs(acc[i][v], p, r[v]);
        }
    }
    for (auto& line : acc) restore(line[0], line[1]);
}

template <int QUERIES>
inline void values(const Number (*weights)[kSegment], const uint16_t* const* rows, int visible, int width, float* out,
                   int64_t stride, Lines& lines) {
    Floats acc[QUERIES][2];
    int column = 0;
    for (; column + 32 <= width; column += 32) {
        values_block<QUERIES>(weights, rows, visible, column, load_pairs, acc, lines);
        for (int i = 0; i < QUERIES; ++i)
            for (int v = 0; v < 2; ++v) store(out + i * stride + column + 16 * v, acc[i][v]);
    }
    if (column == width) return;
    const int left = width - column;
    values_block<QUERIES>(
        weights, rows, visible, column, [=](const uint16_t* p) { return load_pairs_some(p, left); }, acc, lines);
    for (int i = 0; i < QUERIES; ++i) {
        store_n(out + i * stride + column, acc[i][0], left < 16 ? left : 16);
        if (left > 16) store_n(out + i * stride + column + 16, acc[i][1], left - 16);
    }
}

inline void round_row(const float* x, int width, Number* out) {
    for (int i = 0; i < up_to_pairs(width); i += 16) {
        const int n = width - i < 16 ? width - i : 16;
        store_rounded(out + i, n > 0 ? load_n(x + i, n) : zero());
    }
}

inline Floats round_weights(Floats a, Number* out) {
    store_rounded(out, a);
    return load_bf16(out);
}
#else
using Number = float;

// Of 32 columns a query has the even ones first, then the odd ones.
inline void round_row(const float* x, int width, Number* out) {
    for (int i = 0; i < up_to_pairs(width); i += 32) {
        uint16_t rounded[32];
        for (int j = 0; j < 32; j += 16) {
            const int n = width - i - j < 16 ? width - i - j : 16;
            store_rounded(rounded + j, n > 0 ? load_n(x + i + j, n) : zero());
        }
        Floats even, odd;
        load_bf16_pair(rounded, even, odd);
        store(out + i, even), store(out + i + 16, odd);
    }
}

inline Floats round_weights(Floats a, Number* out) {
    uint16_t rounded[16];
    store_rounded(rounded, a);
    a = load_bf16(rounded);
    store(out, a);
    return a;
}

inline void dot_rows(const Number* const* q, const uint16_t* const* rows, int width, Scores& acc) {
    for (int k = 0; k < width; k += 32) {
        Floats even[kScoreBlock], odd[kScoreBlock];
        for (int t = 0; t < kScoreBlock; ++t) {
            uint16_t some[32] = {};
            if (k + 32 > width) std::memcpy(some, rows[t] + k, sizeof(uint16_t) * static_cast<size_t>(width - k));
            load_bf16_pair(k + 32 > width ? some : rows[t] + k, even[t], odd[t]);
        }
        for (int i = 0; i < kScoreBlock; ++i) {
            Floats first = load(q[i] + k), second = load(q[i] + k + 16);
            for (int t = 0; t < kScoreBlock; ++t) acc[i][t] = fma(first, even[t], fma(second, odd[t], acc[i][t]));
        }
    }
}
#endif

// ---- a segment -----------------------------------------------------------------------------------------------------

// Scores to weights over their greatest; returns it and their sum. What follows them is zero, to whole vectors.
inline void soften(float* scores, int visible, float* most, float* sum) {
    float peak = scores[0];
    if (visible >= 16) {
        Floats greatest = load(scores);
        for (int i = 16; i + 16 <= visible; i += 16) greatest = max(greatest, load(scores + i));
        peak = max_lanes(greatest);
    }
    for (int t = visible / 16 * 16; t < visible; ++t) peak = scores[t] > peak ? scores[t] : peak;
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

// Rounds weights and gives the sum of what they are now: values are then their true mean.
inline float round_weights(const float* from, int visible, Number* weights) {
    Floats total = zero();
    each_vector(visible, [&](int i, int) { total = total + round_weights(load(from + i), weights + i); });
    return sum_lanes(total);
}

template <class NUMBER, class ROW>
void segment_scores(const NUMBER* const* q, int queries, float scale, int width, const ROW* const* rows, int visible,
                    float (*scores)[kSegment]) {
    for (int i = 0; i < queries; i += kScoreBlock)
        for (int t = 0; t < visible; t += kScoreBlock) {
            Scores acc;
            for (auto& line : acc)
                for (Floats& each : line) each = zero();
            dot_rows(q + i, rows + t, width, acc);
            Floats sums;
            sum_lanes(acc, sums);
            float block[kScoreBlock][kScoreBlock];
            store(block[0], sums * set1(scale));
            for (int j = 0; j < kScoreBlock; ++j) std::memcpy(scores[i + j] + t, block[j], sizeof block[j]);
        }
}

template <class NUMBER, class ROW>
void segment_values(const NUMBER (*weights)[kSegment], int queries, const Context& context, const ROW* const* rows,
                    int visible, float* out, int64_t stride) {
    const int width = context.values;
    Lines lines(context);
    int i = 0;
    for (; i + kValueQueries <= queries; i += kValueQueries)
        values<kValueQueries>(weights + i, rows, visible, width, out + i * stride, stride, lines);
    for (; i < queries; ++i) values<1>(weights + i, rows, visible, width, out + i * stride, stride, lines);
}

// `queries` is at most kHeads; of q and rows the last one stands in the places after it.
void segment_of(const float* const* q, int queries, float scale, const Context& context, const float* const* rows,
                int visible, float* out, int64_t out_stride, float* most, float* sum) {
    alignas(64) float weights[kHeads][kSegment];
    segment_scores(q, queries, scale, context.width, rows, visible, weights);
    for (int i = 0; i < queries; ++i) soften(weights[i], visible, most + i, sum + i);
    segment_values(weights, queries, context, rows, visible, out, out_stride);
}

// Not inlined, so that nothing of it leaves the scope of `DenormalsAreZero`.
__attribute__((noinline)) void segment_of(const float* const* q, int queries, float scale, const Context& context,
                                          const uint16_t* const* rows, int visible, float* out, int64_t out_stride,
                                          float* most, float* sum) {
    alignas(64) Number rounded[kHeads * kMostWidth];
    alignas(64) Number weights[kHeads][kSegment];
    alignas(64) float scores[kHeads][kSegment];
    const Number* lines[kHeads];
    for (int i = 0; i < kHeads; ++i) lines[i] = rounded + (i < queries ? i : queries - 1) * up_to_pairs(context.width);
    for (int i = 0; i < queries; ++i) round_row(q[i], context.width, rounded + i * up_to_pairs(context.width));
    segment_scores(lines, queries, scale, context.width, rows, visible, scores);
    for (int i = 0; i < queries; ++i) {
        soften(scores[i], visible, most + i, sum + i);
        sum[i] = round_weights(scores[i], visible, weights[i]);
    }
    segment_values(weights, queries, context, rows, visible, out, out_stride);
}

// Calls f(t, page, offset) for the tokens from `first` on.
template <class Function>
inline void each_place(const Context& context, int64_t first, int visible, Function f) {
    const int64_t size = context.page_size;
    int64_t at = first / size, offset = first % size;
    for (int t = 0; t < visible; ++t) {
        f(t, context.pages[at], offset);
        if (++offset == size) offset = 0, ++at;
    }
}

// Where the rows from `first` on are; the last one's place once more for each that completes a block.
template <class ROW>
inline void find_rows(const Context& context, int64_t first, int visible, const ROW** rows) {
    each_place(context, first, visible, [&](int t, int64_t page, int64_t offset) {
        rows[t] = static_cast<const ROW*>(context.rows) + (page * context.page_size + offset) * context.width;
    });
    for (int t = visible; t < visible + kScoreBlock; ++t) rows[t] = rows[visible - 1];
}

// Packed rows are taken apart into `room`, (visible, width).
inline void unpack_rows(const Context& context, int64_t first, int visible, float* room, const float** rows) {
    const Latents& form = context.latents;
    const int64_t size = context.page_size;
    each_place(context, first, visible, [&](int t, int64_t page, int64_t offset) {
        const uint8_t* start = static_cast<const uint8_t*>(context.rows) + page * size * form.row_bytes();
        float* row = room + static_cast<int64_t>(t) * context.width;
        decode_row(start + offset * form.code_bytes(), start + size * form.code_bytes() + offset * form.scale_bytes(),
                   form, row);
        rows[t] = row;
    });
    for (int t = visible; t < visible + kScoreBlock; ++t) rows[t] = rows[visible - 1];
}

void segment(const float* q, int64_t stride, int queries, float scale, const Context& context, int64_t first,
             int visible, float* room, float* out, int64_t out_stride, float* most, float* sum) {
    const float* lines[kHeads];
    for (int i = 0; i < kHeads; ++i) lines[i] = q + (i < queries ? i : queries - 1) * stride;
    if (context.format == RowFormat::bf16) {
        const uint16_t* rows[kSegment + kScoreBlock];
        find_rows(context, first, visible, rows);
        const DenormalsAreZero denormals{};
        segment_of(lines, queries, scale, context, rows, visible, out, out_stride, most, sum);
        return;
    }
    const float* rows[kSegment + kScoreBlock];
    if (context.format == RowFormat::packed)
        unpack_rows(context, first, visible, room, rows);
    else
        find_rows(context, first, visible, rows);
    segment_of(lines, queries, scale, context, rows, visible, out, out_stride, most, sum);
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
