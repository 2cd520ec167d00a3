// What the forward pass asks of an instruction set: a table of functions over plain pointers, one table each.
#pragma once

#include <cstddef>
#include <cstdint>

// What is defined here is compiled once an instruction set: inlined always, or a linker might keep the wrong copy.
#define LEADLINE_INLINE inline __attribute__((always_inline))

namespace leadline {

constexpr int kPanel = 16;      // outputs of a panel
constexpr int kFfnBlock = 64;   // columns of an activation made at a time: one or two whole groups
constexpr int kSegment = 128;   // tokens of the context whose softmax is made at a time
constexpr int kHeads = 8;       // heads that read a segment's rows together
constexpr int kMostWidth = 4096;  // of a row of the cache

enum class Format : int { f32, bf16, int8, int4 };

// A stack of `count` matrices of `rows` outputs in kernel layout; leadline/ops/cpu/layout.py is the reference.
struct Matrix {
    const uint8_t* data = nullptr;
    Format format = Format::f32;
    int rows = 0, columns = 0, group = 0, count = 0;
    int panels = 0, padded = 0, groups = 0;
    size_t scale_bytes = 0, panel_bytes = 0, bytes = 0;

    LEADLINE_INLINE explicit operator bool() const { return data != nullptr; }
    LEADLINE_INLINE bool integer() const { return format == Format::int8 || format == Format::int4; }
    LEADLINE_INLINE const uint8_t* panel(int part, int index) const {
        return data + bytes * static_cast<size_t>(part) + panel_bytes * static_cast<size_t>(index);
    }
};

// Rows that a matrix is multiplied by: floats as they are, or codes with a scale and -8 times the codes' sum a group: what
// int4's offset of 8 takes from a product.
struct Activations {
    const float* x = nullptr;
    int64_t x_stride = 0;
    const int8_t* codes = nullptr;
    int64_t code_stride = 0;
    const float* scales = nullptr;
    const int32_t* sums = nullptr;
    int64_t group_stride = 0;

    LEADLINE_INLINE Activations from(int64_t row) const {
        Activations a = *this;
        a.x += x ? row * x_stride : 0;
        a.codes += codes ? row * code_stride : 0;
        a.scales += scales ? row * group_stride : 0;
        a.sums += sums ? row * group_stride : 0;
        return a;
    }
};

// Where rows are quantised to.
struct Quantised {
    int8_t* codes = nullptr;
    int64_t code_stride = 0;
    float* scales = nullptr;
    int32_t* sums = nullptr;
    int64_t group_stride = 0;
    int group = 0;
};

// How rows of the cache lie: as float32 or bfloat16, one after the other, or in 8 or 6 bits, a page at a time: the codes
// of its rows, then their scales.
enum class RowFormat : int { f32, bf16, packed };
struct Latents {
    bool six = false;
    int latent = 0, rope = 0, group = 0;

    LEADLINE_INLINE int code_bytes() const { return (six ? latent * 3 / 4 : latent) + rope; }
    LEADLINE_INLINE int scale_bytes() const { return 4 + (six ? 2 * (latent / group) : 4); }
    LEADLINE_INLINE int row_bytes() const { return code_bytes() + scale_bytes(); }
};

// The cached rows of one layer that one sequence sees, through its pages.
struct Context {
    const void* rows = nullptr;
    RowFormat format = RowFormat::f32;
    Latents latents;
    int width = 0, values = 0;
    const int64_t* pages = nullptr;
    int page_size = 0;
    const char* ahead = nullptr;  // memory that will be read next, and is asked for meanwhile
    int64_t ahead_bytes = 0;
};

// `queries` (up to 8) rows of width `context.width`, `stride` apart, over the `visible` tokens from `first` on: each
// query's greatest score, the sum of its weights over it, and its weighted values. `room` holds a segment's rows in
// floats, for those that are packed.
using Segment = void (*)(const float* q, int64_t stride, int queries, float scale, const Context& context, int64_t first,
                         int visible, float* room, float* out, int64_t out_stride, float* most, float* sum);

struct Kernels {
    const char* name;

    // out[m][0 .. 16 count) = panels [first, first + count) of matrix `part` times row index[m] (or m) of a.
    void (*matmul)(const Matrix& w, int part, int first, int count, const Activations& a, const int32_t* index,
                   int rows, float* out, int64_t out_stride);

    // Columns [64 block, 64 block + 64) of SwiGLU(w x): floats to `x`, or codes to `codes`, at rows 0 .. rows.
    void (*swiglu)(const Matrix& w, int part, int block, const Activations& a, const int32_t* index, int rows,
                   float* x, int64_t x_stride, const Quantised& codes);

    void (*quantise)(const float* x, int columns, int8_t* codes, float* scales, int32_t* sums, int group);

    void (*norm)(const float* x, const float* weight, float eps, int width, float* out);

    // x + y, to x.
    void (*add)(float* x, const float* y, int width);

    // out = sum_k gates[k] rows[k] (eq. 20), plus `shared` where there is one, all added to x.
    void (*combine)(float* x, const float* const* rows, const float* gates, int slots, const float* shared, int width);

    // Softmax of `experts` logits, in place.
    void (*softmax)(float* logits, int experts);

    Segment segment;

    // Joins a later segment's result to what earlier ones gave.
    void (*join)(float* out, float& most, float& sum, const float* next, float next_most, float next_sum, int width);

    // A row of the cache in fewer bits, and back.
    void (*encode_row)(const float* row, const Latents& form, uint8_t* codes, uint8_t* scales);
    void (*decode_row)(const uint8_t* codes, const uint8_t* scales, const Latents& form, float* out);

    void (*divide)(float* x, float by, int width);

    // Writes finite numbers, rounded to nearest, ties to even.
    void (*to_bf16)(const float* x, uint16_t* out, int width);
    void (*from_bf16)(const uint16_t* x, float* out, int width);

    // The greatest of `width` logits and where it first stands; NaN wins.
    void (*likeliest)(const float* logits, int64_t width, float* peak, int64_t* place);
};

const Kernels& scalar_kernels();
const Kernels* avx2_kernels();    // null where the machine or the build has none, as those below
const Kernels* avxvnni_kernels();
const Kernels* neon_kernels();
// `bf16`: with VDPBF16PS where there is that; it changes no bits.
const Kernels* avx512_kernels(bool bf16 = true);
Segment bf16_segment();           // null without it
const Kernels* amx_kernels();     // null too where the system does not let this process use tiles

// For tests: somebody executes AMX's instructions for a processor that has none.
void emulate_amx(bool on);

}  // namespace leadline
