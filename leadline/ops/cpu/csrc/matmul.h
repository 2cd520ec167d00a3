// Panels times rows. One output element has one order of accumulation, whatever the number of rows, the blocking or the
// instruction set: integers are exact within a group, then one fused multiply-add a group, groups ascending; floats are
// one fused multiply-add a column, columns ascending.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "simd.h"

namespace leadline {
namespace LEADLINE_ISA {

#if defined(LEADLINE_AVX512)
constexpr int kIntRows = 6, kIntPanels = 2;      // 24 sums in registers, 4 for codes, 1 for activations
constexpr int kFloatRows = 6, kFloatPanels = 4;  // 24 sums
#elif defined(LEADLINE_AVX2)
constexpr int kIntRows = 3, kIntPanels = 1;
constexpr int kFloatRows = 3, kFloatPanels = 2;
#else
constexpr int kIntRows = 1, kIntPanels = 1;
constexpr int kFloatRows = 1, kFloatPanels = 1;
#endif
constexpr int kRowBlock = 36;    // six whole tiles
constexpr int kStreamRows = 3;   // of integers, that memory bounds: a panel at a time is one stream
constexpr int kPrefetch = 4096;  // bytes ahead: about what memory delivers while one line is on its way

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

// Asks for a panel's bytes two steps ahead in the order in which they lie, scales and codes alike. Scales are met half a
// line a group: on demand they would be a second stream beside the codes, and a hole in what is asked for ahead.
class ReadAhead {
  public:
    ReadAhead(const Matrix& w, const uint8_t* panel) : next_(panel + 2 * kPrefetch) {
        for (size_t i = 0; i < w.scale_bytes; i += 64) prefetch(panel + i);
    }
    void line(int index) const { prefetch(next_ + 64 * index); }
    void end_group(int group, int lines) {
        next_ += 64 * lines;
        if (group % 2) prefetch(next_), next_ += 64;
    }

  private:
    const uint8_t* next_;
};
struct NoReadAhead {
    NoReadAhead(const Matrix&, const uint8_t*) {}
    void line(int) const {}
    void end_group(int, int) {}
};

// A tile's rows: pointers, so that rows can be gathered.
struct TileRows {
    const float* x[kFloatRows > kIntRows ? kFloatRows : kIntRows];
    const int8_t* codes[kFloatRows > kIntRows ? kFloatRows : kIntRows];
    const float* scales[kFloatRows > kIntRows ? kFloatRows : kIntRows];
    const int32_t* sums[kFloatRows > kIntRows ? kFloatRows : kIntRows];
};

struct TileOut {
    float* out;
    int64_t stride;
    int lanes;  // of the last panel
};

template <int MR, int NP>
inline void store_tile(const Floats (&acc)[MR][NP], const TileOut& o) {
    for (int m = 0; m < MR; ++m)
        for (int p = 0; p < NP; ++p) {
            float* to = o.out + m * o.stride + p * kPanel;
            if (p + 1 == NP && o.lanes < kPanel)
                store_some(to, acc[m][p], o.lanes);
            else
                store(to, acc[m][p]);
        }
}

template <int BITS>
inline int32_t offset_of(int32_t sum) {
    return BITS == 4 ? -8 * sum : kSigned8 ? 0 : -128 * sum;
}

// A line of codes of each panel: those of the first columns, and of int4 those of the four after them.
template <int NP, int BITS>
struct CodeLines {
    Bytes low[NP], high[NP];

    CodeLines(const uint8_t* const* codes, int line) {
        for (int p = 0; p < NP; ++p) {
            const Bytes raw = load_bytes(codes[p] + 64 * line);
            low[p] = BITS == 4 ? low_half(raw) : raw;
            if (BITS == 4) high[p] = high_half(raw);
        }
    }
};

#if defined(LEADLINE_AVX2)
// sum += codes . rows over four lines of int4, by way of 16 bits: eight products of two fit, as many as those have.
template <int MR, int NP, class AHEAD>
inline void add_four_lines(const uint8_t* const* codes, int first, const TileRows& rows, int column,
                           const AHEAD& ahead, Ints (&sum)[MR][NP]) {
    Words part[MR][NP];
    for (auto& line : part)
        for (Words& each : line) each = zero_words();
#pragma GCC unroll 4
    for (int b = first; b < first + 4; ++b) {
        const CodeLines<NP, 4> line(codes, b);
        ahead.line(b);
        for (int m = 0; m < MR; ++m) {
            const int8_t* x = rows.codes[m] + column + b * 8;
            const Quad quad = load_quad(x), next = load_quad(x + 4);
            for (int p = 0; p < NP; ++p) part[m][p] = dot4(dot4(part[m][p], line.low[p], quad), line.high[p], next);
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int p = 0; p < NP; ++p) sum[m][p] = add_words(sum[m][p], part[m][p]);
}
#endif

// Integer codes. Later blocks of rows find the panel in cache, so only the first, FETCH, reads ahead.
template <int MR, int NP, int BITS, int GROUP, bool FETCH>
void int_tile(const Matrix& w, const uint8_t* panel, const TileRows& rows, const TileOut& out) {
    const uint8_t* codes[NP];
    const uint16_t* scales[NP];
    std::conditional_t<FETCH && NP == 1, ReadAhead, NoReadAhead> ahead(w, panel);
    for (int p = 0; p < NP; ++p) {
        scales[p] = reinterpret_cast<const uint16_t*>(panel + w.panel_bytes * p);
        codes[p] = panel + w.panel_bytes * p + w.scale_bytes;
    }
    Floats acc[MR][NP];
    for (int m = 0; m < MR; ++m)
        for (int p = 0; p < NP; ++p) acc[m][p] = zero();
    constexpr int kLines = GROUP * BITS / 32;  // of a group: 16 outputs' codes in 64 bytes each
    for (int g = 0; g < w.groups; ++g) {
        Ints sum[MR][NP];
        for (int m = 0; m < MR; ++m)
            for (int p = 0; p < NP; ++p) sum[m][p] = set1i(offset_of<BITS>(rows.sums[m][g]));
#if defined(LEADLINE_AVX2)
        constexpr int kWide = BITS == 4 ? 0 : kLines;
        for (int b = 0; b < kLines - kWide; b += 4) add_four_lines(codes, b, rows, g * GROUP, ahead, sum);
#else
        constexpr int kWide = kLines;
#endif
#pragma GCC unroll 16
        for (int b = 0; b < kWide; ++b) {
            Bytes low[NP], high[NP];
            ahead.line(b);
            for (int p = 0; p < NP; ++p) {
                Bytes raw = load_bytes(codes[p] + 64 * b);
                if (FETCH && NP > 1) prefetch_far(codes[p] + 64 * b + w.panel_bytes * NP);
                low[p] = BITS == 4 ? low_half(raw) : raw;
                if (BITS == 4) high[p] = high_half(raw);
            }
            for (int m = 0; m < MR; ++m) {
                const int8_t* x = rows.codes[m] + g * GROUP + b * (BITS == 4 ? 8 : 4);
                Quad first = load_quad(x);
                for (int p = 0; p < NP; ++p)
                    sum[m][p] = BITS == 4 ? dot4(sum[m][p], low[p], first) : dot8(sum[m][p], low[p], first);
                if (BITS == 4) {
                    Quad second = load_quad(x + 4);
                    for (int p = 0; p < NP; ++p) sum[m][p] = dot4(sum[m][p], high[p], second);
                }
            }
        }
        for (int p = 0; p < NP; ++p) {
            Floats scale = load_half(scales[p] + g * kPanel);
            for (int m = 0; m < MR; ++m)
                acc[m][p] = fma(to_floats(sum[m][p]), scale * set1(rows.scales[m][g]), acc[m][p]);
            codes[p] += 64 * kLines;
        }
        ahead.end_group(g, kLines);
    }
    store_tile<MR, NP>(acc, out);
}

template <int MR, int NP, bool HALF, bool FETCH>
void float_tile(const Matrix& w, const uint8_t* panel, const TileRows& rows, const TileOut& out) {
    Floats acc[MR][NP];
    for (int m = 0; m < MR; ++m)
        for (int p = 0; p < NP; ++p) acc[m][p] = zero();
    int k = 0;
    for (; k + 1 < w.columns; k += 2) {
        Floats even[NP], odd[NP];
        for (int p = 0; p < NP; ++p) {
            const uint8_t* at = panel + w.panel_bytes * p + static_cast<size_t>(k) * kPanel * (HALF ? 2 : 4);
            if (FETCH) prefetch(at + kPrefetch / 2);
            if (HALF) {
                load_bf16_pair(reinterpret_cast<const uint16_t*>(at), even[p], odd[p]);
            } else {
                if (FETCH) prefetch(at + kPrefetch / 2 + 64);
                even[p] = load(reinterpret_cast<const float*>(at));
                odd[p] = load(reinterpret_cast<const float*>(at) + kPanel);
            }
        }
        for (int m = 0; m < MR; ++m) {
            Floats first = set1(rows.x[m][k]), second = set1(rows.x[m][k + 1]);
            for (int p = 0; p < NP; ++p) acc[m][p] = fma(even[p], first, acc[m][p]);
            for (int p = 0; p < NP; ++p) acc[m][p] = fma(odd[p], second, acc[m][p]);
        }
    }
    if (k < w.columns) {
        for (int p = 0; p < NP; ++p) {
            const uint8_t* at = panel + w.panel_bytes * p + static_cast<size_t>(k) * kPanel * (HALF ? 2 : 4);
            Floats last, pad;
            if (HALF)
                load_bf16_pair(reinterpret_cast<const uint16_t*>(at), last, pad);
            else
                last = load(reinterpret_cast<const float*>(at));
            for (int m = 0; m < MR; ++m) acc[m][p] = fma(last, set1(rows.x[m][k]), acc[m][p]);
        }
    }
    store_tile<MR, NP>(acc, out);
}

using Tile = void (*)(const Matrix&, const uint8_t*, const TileRows&, const TileOut&);

template <int MR, int NP, bool FETCH>
Tile int_tile_for(const Matrix& w) {
    if (w.format == Format::int4)
        return w.group == 32 ? int_tile<MR, NP, 4, 32, FETCH> : int_tile<MR, NP, 4, 64, FETCH>;
    return w.group == 32 ? int_tile<MR, NP, 8, 32, FETCH> : int_tile<MR, NP, 8, 64, FETCH>;
}

template <int MR, int NP, bool FETCH>
Tile float_tile_for(const Matrix& w) {
    return w.format == Format::bf16 ? float_tile<MR, NP, true, FETCH> : float_tile<MR, NP, false, FETCH>;
}

// The tile for this many rows of this many panels; both are at most the set's own.
template <int MR, int NP>
Tile choose(const Matrix& w, int rows, bool fetch) {
    if constexpr (MR > 1) {
        if (rows < MR) return choose<MR - 1, NP>(w, rows, fetch);
    }
    if constexpr (NP == 1 || NP == kIntPanels) {
        if (w.integer()) return fetch ? int_tile_for<MR, NP, true>(w) : int_tile_for<MR, NP, false>(w);
    }
    if constexpr (NP == 1 || NP == kFloatPanels) {
        if (!w.integer()) return fetch ? float_tile_for<MR, NP, true>(w) : float_tile_for<MR, NP, false>(w);
    }
    return nullptr;
}

constexpr int kMaxRows = kFloatRows > kIntRows ? kFloatRows : kIntRows;

inline Tile tile_for(const Matrix& w, int rows, int panels, bool fetch) {
    if (panels == 1) return choose<kMaxRows, 1>(w, rows, fetch);
    return w.integer() ? choose<kMaxRows, kIntPanels>(w, rows, fetch) : choose<kMaxRows, kFloatPanels>(w, rows, fetch);
}

inline void gather(TileRows& tile, const Activations& a, const int32_t* index, int from, int count, bool integer) {
    for (int m = 0; m < count; ++m) {
        int64_t row = index ? index[from + m] : from + m;
        if (integer) {
            tile.codes[m] = a.codes + row * a.code_stride;
            tile.scales[m] = a.scales + row * a.group_stride;
            tile.sums[m] = a.sums + row * a.group_stride;
        } else {
            tile.x[m] = a.x + row * a.x_stride;
        }
    }
}

constexpr int kRowsInCache = 120;  // activations that stay in the second level beside the panels

void matmul(const Matrix& w, int part, int first, int count, const Activations& a, const int32_t* index, int rows,
            float* out, int64_t out_stride) {
    const int most_rows = w.integer() ? kIntRows : kFloatRows;
    const int most_panels = w.integer() ? (rows <= kStreamRows ? 1 : kIntPanels) : kFloatPanels;
    for (int from = 0; from < rows; from += kRowsInCache) {
        const int until = rows < from + kRowsInCache ? rows : from + kRowsInCache;
        for (int p = 0; p < count;) {
            const int panels = count - p >= most_panels ? most_panels : 1;
            const int end = (first + p + panels) * kPanel;
            const int lanes = end > w.rows ? kPanel - (end - w.rows) : kPanel;
            for (int m = from; m < until;) {
                const int step = until - m < most_rows ? until - m : most_rows;
                TileRows tile;
                gather(tile, a, index, m, step, w.integer());
                TileOut to{out + m * out_stride + p * kPanel, out_stride, lanes};
                tile_for(w, step, panels, m == 0)(w, w.panel(part, first + p), tile, to);
                m += step;
            }
            p += panels;
        }
    }
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
