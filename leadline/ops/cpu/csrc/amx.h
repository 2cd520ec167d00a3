// Integer panels times rows in AMX's tiles: the bits of matmul.h by other instructions.
//
// A tile of activations is sixteen rows' codes of one group; a tile of weights is one panel's codes of that group, four
// columns of sixteen outputs a line, which is how panels lie already. Their product, int32 and exact, goes through memory
// into the same float32 multiply-add a group, groups ascending, that every other instruction set makes.
//
// A panel's codes are made signed bytes once for all rows that meet it: for int4 they must be unpacked anyway, and signed
// bytes spare an addition for every sum.
#pragma once

#include <new>

#include "kernels.h"
#include "simd.h"

namespace leadline {
namespace LEADLINE_ISA {

constexpr int kTileRows = 16;
constexpr int kStrip = 4;        // groups whose products are under way together, each in a tile of its own
constexpr int kBlocks = 8;       // of sixteen rows: activations that stay in the second level beside the panels
constexpr int kRowBlock = 64;
// A group of a panel costs a tile some thirty cycles and two for each row; VNNI takes six for each row (32 columns), or
// ten (64). So tiles begin to win at five to eight rows; with fewer the rows are VNNI's. Either way the bits are the same.
constexpr int kFewRows = 8;

// ---- instructions --------------------------------------------------------------------------------------------------
// Not the compiler's own intrinsics: gcc 12 drops stores that only LDTILECFG or TILELOADD would read. The clobbers order
// them with what happens in memory.

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

inline void tile_shapes(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory"); }
inline void tile_release() { asm volatile("tilerelease" ::: "memory"); }
template <int TILE>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
template <int TILE>
inline void tile_load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
inline void tile_store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(TILE) : "memory");
}
// SUM += A B, both of signed bytes.
template <int SUM, int A, int B>
inline void tile_dot() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(A), "i"(B));
}

// Tiles 0 to 3 are products, 4 and 5 activations, 6 and 7 weights.
template <int GROUP>
inline void shape_tiles() {
    TileShapes shapes;
    for (int tile = 0; tile < 4; ++tile) shapes.rows[tile] = kTileRows, shapes.bytes[tile] = kPanel * 4;
    for (int tile = 4; tile < 6; ++tile) shapes.rows[tile] = kTileRows, shapes.bytes[tile] = GROUP;
    for (int tile = 6; tile < 8; ++tile) shapes.rows[tile] = GROUP / 4, shapes.bytes[tile] = kPanel * 4;
    tile_shapes(shapes);
}

// ---- rows and panels -----------------------------------------------------------------------------------------------

// A thread's memory that only grows. Compiled for this instruction set alone, as std::vector would not be.
class TileRoom {
  public:
    TileRoom() = default;
    TileRoom(const TileRoom&) = delete;
    TileRoom& operator=(const TileRoom&) = delete;
    ~TileRoom() { free(); }

    int8_t* need(size_t size) {
        if (size > size_) {
            free();
            data_ = nullptr, size_ = 0;
            data_ = static_cast<int8_t*>(::operator new(size, std::align_val_t(64)));
            size_ = size;
        }
        return data_;
    }

  private:
    void free() {
        if (data_) ::operator delete(data_, std::align_val_t(64));
    }
    int8_t* data_ = nullptr;
    size_t size_ = 0;
};

// Up to sixteen rows.
struct TileBlock {
    const int8_t* codes;
    int64_t stride;
    int rows;
    const float* scales[kTileRows];
};

// Rows that lie apart, or are fewer than a tile loads, are copied side by side; what stands in lines that no row fills
// does not matter.
inline TileBlock tile_block(const Matrix& w, const Activations& a, const int32_t* index, int from, int count,
                            int8_t* room) {
    const bool copied = index || count < kTileRows;
    TileBlock block{a.codes + from * a.code_stride, a.code_stride, count, {}};
    if (copied) block.codes = room, block.stride = w.padded;
    for (int m = 0; m < count; ++m) {
        const int64_t row = index ? index[from + m] : from + m;
        block.scales[m] = a.scales + row * a.group_stride;
        if (copied) std::memcpy(room + m * w.padded, a.codes + row * a.code_stride, static_cast<size_t>(w.padded));
    }
    return block;
}

// A panel's codes as signed bytes, four columns a line.
inline void signed_codes(const Matrix& w, const uint8_t* packed, int8_t* out) {
    const int bits = w.format == Format::int4 ? 4 : 8, lines = w.padded * kPanel * bits / 8 / 64;
    for (int i = 0; i < lines; ++i) {
        const Bytes raw = load_bytes(packed + 64 * i);
        if (w.format == Format::int4) {
            const __m512i zero = _mm512_set1_epi8(8);
            _mm512_storeu_si512(out + 128 * i, _mm512_sub_epi8(low_half(raw).v, zero));
            _mm512_storeu_si512(out + 128 * i + 64, _mm512_sub_epi8(high_half(raw).v, zero));
        } else {
            const __m512i zero = _mm512_set1_epi8(static_cast<char>(0x80));
            _mm512_storeu_si512(out + 64 * i, _mm512_xor_si512(raw.v, zero));
        }
    }
}

// What a block meets: a panel's codes and scales, and the packed codes of the next one, to be fetched meanwhile.
struct TilePanel {
    const int8_t* codes;
    const uint16_t* scales;
    const uint8_t* next;
    int64_t next_group;  // its bytes of a group
};

// ---- products ------------------------------------------------------------------------------------------------------

template <int GROUP, int AT>
inline void group_product(const TileBlock& rows, const int8_t* weights, int group, int32_t* product) {
    tile_zero<AT>();
    tile_load<4 + AT % 2>(rows.codes + group * GROUP, rows.stride);
    tile_load<6 + AT % 2>(weights + static_cast<int64_t>(group) * GROUP * kPanel, 64);
    tile_dot<AT, 4 + AT % 2, 6 + AT % 2>();
    tile_store<AT>(product, kPanel * 4);
}

constexpr int kProduct = kTileRows * kPanel;

template <int GROUP>
inline void strip_products(const TileBlock& rows, const TilePanel& panel, int group, int count, int32_t* products) {
    group_product<GROUP, 0>(rows, panel.codes, group, products);
    if (count > 1) group_product<GROUP, 1>(rows, panel.codes, group + 1, products + kProduct);
    if (count > 2) group_product<GROUP, 2>(rows, panel.codes, group + 2, products + 2 * kProduct);
    if (count > 3) group_product<GROUP, 3>(rows, panel.codes, group + 3, products + 3 * kProduct);
    if (panel.next)
        for (int64_t at = group * panel.next_group; at < (group + count) * panel.next_group; at += 64)
            __builtin_prefetch(panel.next + at, 0, 2);
}

// A sum is in memory between strips: four multiply-adds for one load and one store.
template <int COUNT>
inline void add_groups(Floats* sums, const TileBlock& rows, const uint16_t* scales, int group, const int32_t* products) {
    Floats scale[COUNT];
    for (int g = 0; g < COUNT; ++g) scale[g] = load_half(scales + (group + g) * kPanel);
    for (int m = 0; m < rows.rows; ++m)
        for (int g = 0; g < COUNT; ++g) {
            const Ints product{_mm512_load_si512(products + g * kProduct + m * kPanel)};
            sums[m] = fma(to_floats(product), scale[g] * set1(rows.scales[m][group + g]), sums[m]);
        }
}

// A panel times a block: a strip's products are made while the one before it is added up.
template <int GROUP>
void tile_panel(const Matrix& w, const TileBlock& rows, const TilePanel& panel, float* out, int64_t stride, int lanes) {
    alignas(64) int32_t products[2][kStrip * kProduct];
    Floats sums[kTileRows];
    for (Floats& each : sums) each = zero();
    auto count_at = [&](int group) { return w.groups - group < kStrip ? w.groups - group : kStrip; };
    strip_products<GROUP>(rows, panel, 0, count_at(0), products[0]);
    for (int group = 0, turn = 0; group < w.groups; group += kStrip, turn ^= 1) {
        const int next = group + kStrip, count = count_at(group);
        if (next < w.groups) strip_products<GROUP>(rows, panel, next, count_at(next), products[turn ^ 1]);
        if (count == kStrip)
            add_groups<kStrip>(sums, rows, panel.scales, group, products[turn]);
        else
            for (int g = 0; g < count; ++g)
                add_groups<1>(sums, rows, panel.scales, group + g, products[turn] + g * kProduct);
    }
    for (int m = 0; m < rows.rows; ++m)
        if (lanes < kPanel)
            store_some(out + m * stride, sums[m], lanes);
        else
            store(out + m * stride, sums[m]);
}

template <int GROUP>
void tile_matmul(const Matrix& w, int part, int first, int count, const Activations& a, const int32_t* index, int rows,
                 float* out, int64_t out_stride) {
    static thread_local TileRoom panel_room, rows_room;
    const size_t line = static_cast<size_t>(w.padded);
    int8_t* codes = panel_room.need(line * kPanel);
    int8_t* copies = rows_room.need(line * kTileRows * kBlocks);
    TileBlock blocks[kBlocks];
    shape_tiles<GROUP>();
    for (int from = 0; from < rows; from += kBlocks * kTileRows) {
        int held = 0;
        for (int m = from; m < rows && held < kBlocks; m += kTileRows, ++held)
            blocks[held] = tile_block(w, a, index, m, rows - m < kTileRows ? rows - m : kTileRows,
                                      copies + line * kTileRows * static_cast<size_t>(held));
        for (int p = first; p < first + count; ++p) {
            const uint8_t* packed = w.panel(part, p);
            signed_codes(w, packed + w.scale_bytes, codes);
            const uint8_t* next = p + 1 < first + count && from == 0 ? packed + w.panel_bytes + w.scale_bytes : nullptr;
            const int64_t next_group = static_cast<int64_t>(w.panel_bytes - w.scale_bytes) / w.groups;
            const int lanes = (p + 1) * kPanel > w.rows ? w.rows - p * kPanel : kPanel;
            for (int b = 0; b < held; ++b) {
                const TilePanel panel{codes, reinterpret_cast<const uint16_t*>(packed), b ? nullptr : next, next_group};
                tile_panel<GROUP>(w, blocks[b], panel, out + (from + b * kTileRows) * out_stride + (p - first) * kPanel,
                                  out_stride, lanes);
            }
        }
    }
    tile_release();
}

// Whole blocks of rows, and what is left over where it is worth a tile; the rest, and floats, as AVX-512 has them.
void matmul(const Matrix& w, int part, int first, int count, const Activations& a, const int32_t* index, int rows,
            float* out, int64_t out_stride) {
    const int over = rows % kTileRows, tiled = !w.integer() ? 0 : over < kFewRows ? rows - over : rows;
    if (tiled) (w.group == 32 ? tile_matmul<32> : tile_matmul<64>)(w, part, first, count, a, index, tiled, out, out_stride);
    if (tiled < rows)
        avx512_kernels()->matmul(w, part, first, count, index ? a : a.from(tiled), index ? index + tiled : nullptr,
                                 rows - tiled, out + tiled * out_stride, out_stride);
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
