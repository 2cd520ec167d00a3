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
#if defined(LEADLINE_AVXVNNI)
constexpr int kIntRows = 4, kIntPanels = 1;
#else
constexpr int kIntRows = 3, kIntPanels = 1;
#endif
constexpr int kFloatRows = 3, kFloatPanels = 2;
#elif defined(LEADLINE_NEON)
constexpr int kIntRows = 4, kIntPanels = 1;  // 16 sums of four lanes and 8 codes in registers
constexpr int kFloatRows = 4, kFloatPanels = 1;
#else
constexpr int kIntRows = 1, kIntPanels = 1;
constexpr int kFloatRows = 1, kFloatPanels = 1;
#endif
constexpr int kRowBlock = 120;   // activations that stay in the second level beside the panels
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

constexpr int kMostRows = kFloatRows > kIntRows ? kFloatRows : kIntRows;

// A tile's rows: pointers, so that rows can be gathered.
struct TileRows {
    int count;
    const float* x[kMostRows];
    const int8_t* codes[kMostRows];
    const float* scales[kMostRows];
    const int32_t* sums[kMostRows];
};

// What a tile asks for while it runs: so many lines for each line of codes that it meets.
struct TileAhead {
    const uint8_t* at = nullptr;
    int lines = 0;
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

// What the codes' offset takes from a group's sum; `sum` is -8 times the activations' (kernels.h).
template <int BITS>
inline Ints offset_of(int32_t sum) {
    return BITS == 4 ? set1i(sum) : kSigned8 ? set1i(0) : shift_left(set1i(sum), 4);
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

#if defined(LEADLINE_AVX2) && !defined(LEADLINE_AVXVNNI)
#define LEADLINE_WORDS
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

// Integer codes. A panel alone, which memory bounds, is read ahead of (FETCH) by the first tile that meets it; panels side
// by side are met by many rows, and their tiles share in asking for the next panels.
template <int MR, int NP, int BITS, int GROUP, bool FETCH>
void int_tile(const Matrix& w, const uint8_t* panel, const TileRows& rows, TileAhead next, const TileOut& out) {
    const uint8_t* codes[NP];
    const uint16_t* scales[NP];
    static_assert(!FETCH || NP == 1);
    std::conditional_t<FETCH, ReadAhead, NoReadAhead> ahead(w, panel);
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
            for (int p = 0; p < NP; ++p) sum[m][p] = offset_of<BITS>(rows.sums[m][g]);
#if defined(LEADLINE_WORDS)
        constexpr int kWide = BITS == 4 ? 0 : kLines;
        for (int b = 0; b < kLines - kWide; b += 4) add_four_lines(codes, b, rows, g * GROUP, ahead, sum);
#else
        constexpr int kWide = kLines;
#endif
#pragma GCC unroll 16
        for (int b = 0; b < kWide; ++b) {
            Bytes low[NP], high[NP];
            ahead.line(b);
            if constexpr (NP > 1)
                for (int i = 0; i < next.lines; ++i) prefetch_far(next.at), next.at += 64;
            for (int p = 0; p < NP; ++p) {
                Bytes raw = load_bytes(codes[p] + 64 * b);
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
void float_tile(const Matrix& w, const uint8_t* panel, const TileRows& rows, TileAhead, const TileOut& out) {
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

using Tile = void (*)(const Matrix&, const uint8_t*, const TileRows&, TileAhead, const TileOut&);

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
        if (w.integer()) return fetch && NP == 1 ? int_tile_for<MR, NP, NP == 1>(w) : int_tile_for<MR, NP, false>(w);
    }
    if constexpr (NP == 1 || NP == kFloatPanels) {
        if (!w.integer()) return fetch ? float_tile_for<MR, NP, true>(w) : float_tile_for<MR, NP, false>(w);
    }
    return nullptr;
}

inline Tile tile_for(const Matrix& w, int rows, int panels, bool fetch) {
    if (panels == 1) return choose<kMostRows, 1>(w, rows, fetch);
    return w.integer() ? choose<kMostRows, kIntPanels>(w, rows, fetch) : choose<kMostRows, kFloatPanels>(w, rows, fetch);
}

// Rows [from, until) cut into tiles of up to `most`; returns how many. The last two share what is left: one row alone costs
// as much as two.
inline int cut(TileRows* tiles, const Activations& a, const int32_t* index, int from, int until, int most, bool integer) {
    int count = 0;
    for (int at = from; at < until; ++count) {
        const int left = until - at;
        TileRows& tile = tiles[count];
        tile.count = left <= most ? left : left < 2 * most ? (left + 1) / 2 : most;
        for (int m = 0; m < tile.count; ++m, ++at) {
            const int64_t row = index ? index[at] : at;
            if (integer) {
                tile.codes[m] = a.codes + row * a.code_stride;
                tile.scales[m] = a.scales + row * a.group_stride;
                tile.sums[m] = a.sums + row * a.group_stride;
            } else {
                tile.x[m] = a.x + row * a.x_stride;
            }
        }
    }
    return count;
}

// The share of tile `tile` of `tiles` in asking for as many panels as it meets, those that follow.
inline TileAhead ahead_of(const Matrix& w, const uint8_t* panel, int panels, int tile, int tiles) {
    const int64_t bytes = panels * static_cast<int64_t>(w.panel_bytes);
    const int64_t steps = static_cast<int64_t>(w.panel_bytes - w.scale_bytes) / 64;  // lines of codes, of each panel
    const int64_t lines = (bytes / 64 + tiles * steps - 1) / (tiles * steps), at = tile * steps * lines * 64;
    return at < bytes ? TileAhead{panel + bytes + at, static_cast<int>(lines)} : TileAhead{};
}

void matmul(const Matrix& w, int part, int first, int count, const Activations& a, const int32_t* index, int rows,
            float* out, int64_t out_stride) {
    const bool integer = w.integer();
    const int most_rows = integer ? kIntRows : kFloatRows;
    const int most_panels = !integer ? kFloatPanels : rows <= kStreamRows ? 1 : kIntPanels;
    TileRows cuts[kRowBlock];
    for (int from = 0; from < rows; from += kRowBlock) {
        const int until = rows < from + kRowBlock ? rows : from + kRowBlock;
        const int tiles = cut(cuts, a, index, from, until, most_rows, integer);
        for (int p = 0; p < count;) {
            const int panels = count - p >= most_panels ? most_panels : 1;
            const int end = (first + p + panels) * kPanel;
            const uint8_t* panel = w.panel(part, first + p);
            const bool asks = from == 0 && panels > 1 && integer;
            TileOut to{out + from * out_stride + p * kPanel, out_stride, end > w.rows ? kPanel - (end - w.rows) : kPanel};
            for (int i = 0; i < tiles; ++i) {
                const TileAhead ahead = asks ? ahead_of(w, panel, panels, i, tiles) : TileAhead{};
                tile_for(w, cuts[i].count, panels, i == 0)(w, panel, cuts[i], ahead, to);
                to.out += cuts[i].count * out_stride;
            }
            p += panels;
        }
    }
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
