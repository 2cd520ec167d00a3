// The Python side: addresses and numbers in, nothing converted, the GIL released while kernels run.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "model.h"
#include "training_bindings.h"

namespace nb = nanobind;
using namespace nb::literals;
using leadline::Activations;
using leadline::Context;
using leadline::Format;
using leadline::Kernels;
using leadline::Matrix;
using leadline::Model;
using leadline::Operand;
using leadline::Pass;
using leadline::Pool;
using leadline::Quantised;
using leadline::Shape;

namespace {

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    if (leadline::amx_kernels()) names.push_back("amx");
    if (leadline::avx512_kernels()) names.push_back("avx512");
    if (leadline::avxvnni_kernels()) names.push_back("avxvnni");
    if (leadline::avx2_kernels()) names.push_back("avx2");
    if (leadline::neon_kernels()) names.push_back("neon");
    names.push_back("scalar");
    return names;
}

const Kernels& kernels(const std::string& name) {
    const Kernels* found = name == "amx"      ? leadline::amx_kernels()
                           : name == "avx512" ? leadline::avx512_kernels()
                           : name == "avx512 without bf16" ? leadline::avx512_kernels(false)  // for tests
                           : name == "avxvnni" ? leadline::avxvnni_kernels()
                           : name == "avx2" ? leadline::avx2_kernels()
                           : name == "neon" ? leadline::neon_kernels()
                           : name == "scalar" ? &leadline::scalar_kernels()
                                              : nullptr;
    if (!found) throw std::invalid_argument("this machine, or this build, has no instruction set " + name);
    return *found;
}

// leadline/ops/cpu/layout.py: Layout.
Matrix matrix(uintptr_t data, const std::string& format, int rows, int columns, int group, int count) {
    Matrix m;
    m.data = at<const uint8_t>(data);
    m.format = format == "f32" ? Format::f32 : format == "bf16" ? Format::bf16 : format == "int8" ? Format::int8 : Format::int4;
    m.rows = rows, m.columns = columns, m.group = group, m.count = count;
    m.panels = (rows + leadline::kPanel - 1) / leadline::kPanel;
    const int step = group ? group : 2, bits = format == "f32" ? 32 : format == "bf16" ? 16 : format == "int8" ? 8 : 4;
    m.padded = (columns + step - 1) / step * step;
    m.groups = group ? m.padded / group : 0;
    m.scale_bytes = (static_cast<size_t>(m.groups) * leadline::kPanel * 2 + 63) / 64 * 64;
    m.panel_bytes = m.scale_bytes + static_cast<size_t>(m.padded) * leadline::kPanel * bits / 8;
    m.bytes = m.panel_bytes * m.panels;
    return m;
}

void linear(const std::string& isa, const Matrix& w, uintptr_t x, int rows, uintptr_t out) {
    const Kernels& k = kernels(isa);
    Operand operand;
    operand.shape(rows, w.columns, at<const float>(x), w.columns, {&w});
    for (int r = 0; r < rows; ++r) operand.quantise(k, r);
    nb::gil_scoped_release release;
    k.matmul(w, 0, 0, w.panels, operand.of(w), nullptr, rows, at<float>(out), w.rows);
}

void quantise(const std::string& isa, uintptr_t x, int rows, int columns, int group, uintptr_t codes, uintptr_t scales) {
    const Kernels& k = kernels(isa);
    const int groups = (columns + group - 1) / group;
    std::vector<int32_t> sums(static_cast<size_t>(groups));
    for (int64_t r = 0; r < rows; ++r)
        k.quantise(at<const float>(x) + r * columns, columns, at<int8_t>(codes) + r * groups * group,
                   at<float>(scales) + r * groups, sums.data(), group);
}

// SwiGLU of all rows in floats, its columns padded to whole blocks.
void swiglu(const std::string& isa, const Matrix& w, uintptr_t x, int rows, uintptr_t out) {
    const Kernels& k = kernels(isa);
    Operand operand;
    operand.shape(rows, w.columns, at<const float>(x), w.columns, {&w});
    for (int r = 0; r < rows; ++r) operand.quantise(k, r);
    const int blocks = (w.panels + 7) / 8;
    for (int block = 0; block < blocks; ++block)
        k.swiglu(w, 0, block, operand.of(w), nullptr, rows, at<float>(out), static_cast<int64_t>(blocks) * leadline::kFfnBlock,
                 Quantised{});
}

void norm(const std::string& isa, uintptr_t x, uintptr_t weight, float eps, int rows, int width, uintptr_t out) {
    const Kernels& k = kernels(isa);
    for (int64_t r = 0; r < rows; ++r)
        k.norm(at<const float>(x) + r * width, at<const float>(weight), eps, width, at<float>(out) + r * width);
}

// One token's heads over its context, segment by segment.
void attend(const std::string& isa, uintptr_t q, int heads, int width, int values, float scale, uintptr_t rows, bool half,
            uintptr_t pages, int page_size, int64_t length, uintptr_t out) {
    const Kernels& k = kernels(isa);
    const auto format = half ? leadline::RowFormat::bf16 : leadline::RowFormat::f32;
    const Context context{at<const void>(rows), format, {}, width, values, at<const int64_t>(pages), page_size};
    std::vector<float> next(static_cast<size_t>(leadline::kHeads) * values);
    for (int head = 0; head < heads; head += leadline::kHeads) {
        const int count = heads - head < leadline::kHeads ? heads - head : leadline::kHeads;
        float* to = at<float>(out) + static_cast<int64_t>(head) * values;
        float most[leadline::kHeads], sum[leadline::kHeads], next_most[leadline::kHeads], next_sum[leadline::kHeads];
        for (int64_t first = 0; first < length; first += leadline::kSegment) {
            const int visible = static_cast<int>(length - first < leadline::kSegment ? length - first : leadline::kSegment);
            k.segment(at<const float>(q) + static_cast<int64_t>(head) * width, width, count, scale, context, first, visible, nullptr,
                      first ? next.data() : to, values, first ? next_most : most, first ? next_sum : sum);
            for (int h = 0; first && h < count; ++h)
                k.join(to + h * values, most[h], sum[h], next.data() + h * values, next_most[h], next_sum[h], values);
        }
        for (int h = 0; h < count; ++h) k.divide(to + h * values, sum[h], values);
    }
}

void likeliest(const std::string& isa, uintptr_t logits, int rows, int64_t stride, int64_t width, uintptr_t peaks,
               uintptr_t places) {
    const Kernels& k = kernels(isa);
    nb::gil_scoped_release release;
    for (int r = 0; r < rows; ++r)
        k.likeliest(at<const float>(logits) + r * stride, width, at<float>(peaks) + r, at<int64_t>(places) + r);
}

// Gigabytes a second that these threads read from memory of the caller's; larger than any cache, or it says nothing.
double bandwidth(uintptr_t data, size_t bytes, int threads) {
    nb::gil_scoped_release release;
    Pool pool(threads);
    constexpr size_t kBlock = 1 << 20;
    const auto start = std::chrono::steady_clock::now();
    std::atomic<uint64_t> total{0};
    pool.each(static_cast<int>(bytes / kBlock), [&](int block) {
        const uint64_t* p = at<const uint64_t>(data + static_cast<size_t>(block) * kBlock);
        uint64_t sums[8] = {};
        for (size_t i = 0; i < kBlock / 8; i += 8) {
            __builtin_prefetch(p + i + 512);
            for (int j = 0; j < 8; ++j) sums[j] += p[i + static_cast<size_t>(j)];
        }
        total += sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
    });
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    return static_cast<double>(bytes / kBlock * kBlock) / passed.count() / 1e9 + (total == 1 ? 1e-9 : 0.0);
}

Model* make_model(const nb::dict& shape, const std::string& isa, int threads) {
    Shape s;
    auto number = [&](const char* name) { return nb::cast<int>(shape[name]); };
    s.hidden = number("hidden"), s.layers = number("layers"), s.vocab = number("vocab");
    s.heads = number("heads"), s.nope = number("nope"), s.rope = number("rope"), s.values = number("values");
    s.latent = number("latent"), s.query_rank = number("query_rank");
    s.experts = number("experts"), s.top_k = number("top_k");
    s.groups = number("groups"), s.keep_groups = number("keep_groups");
    s.normalise = nb::cast<bool>(shape["normalise"]);
    s.factor = nb::cast<float>(shape["factor"]), s.eps = nb::cast<float>(shape["eps"]);
    s.scale = nb::cast<float>(shape["scale"]);
    return new Model(s, kernels(isa), threads);
}

void forward(Model& model, int tokens, uintptr_t ids, uintptr_t positions, uintptr_t slots,
             const std::vector<int64_t>& starts, const std::vector<int64_t>& contexts, uintptr_t pages, int page_columns,
             int page_size, uintptr_t cache, size_t cache_layer_bytes, const std::string& cache_format, int cache_group, uintptr_t cos, uintptr_t sin,
             uintptr_t hidden) {
    Pass pass;
    pass.tokens = tokens, pass.sequences = static_cast<int>(contexts.size());
    pass.ids = at<const int64_t>(ids), pass.positions = at<const int64_t>(positions), pass.slots = at<const int64_t>(slots);
    pass.starts = starts.data(), pass.contexts = contexts.data();
    pass.pages = at<const int64_t>(pages), pass.page_columns = page_columns, pass.page_size = page_size;
    pass.cache = at<char>(cache), pass.cache_layer_bytes = cache_layer_bytes;
    pass.cache_format = cache_format == "float32"    ? leadline::RowFormat::f32
                        : cache_format == "bfloat16" ? leadline::RowFormat::bf16
                                                     : leadline::RowFormat::packed;
    pass.latents = {cache_format == "6bit", model.shape().latent, model.shape().rope, cache_group};
    pass.cos = at<const float>(cos), pass.sin = at<const float>(sin), pass.hidden = at<float>(hidden);
    nb::gil_scoped_release release;
    model.forward(pass);
}

// A layer's choices of the last pass: ids as int64, gates, affinities.
void routing(const Model& model, int index, int tokens, uintptr_t ids, uintptr_t gates, uintptr_t scores) {
    const int64_t pairs = static_cast<int64_t>(tokens) * model.shape().top_k;
    for (int64_t i = 0; i < pairs; ++i) at<int64_t>(ids)[i] = model.routed()[index * pairs + i];
    std::memcpy(at<float>(gates), model.gates() + index * pairs, sizeof(float) * static_cast<size_t>(pairs));
    const int64_t all = static_cast<int64_t>(tokens) * model.shape().experts;
    std::memcpy(at<float>(scores), model.scores() + index * all, sizeof(float) * static_cast<size_t>(all));
}

}  // namespace

NB_MODULE(_kernels, m) {
    nb::set_leak_warnings(false);  // an engine's thread may hold a model when the interpreter ends: no user's concern
    m.def("instruction_sets", &instruction_sets);
    m.def("emulate_amx", &leadline::emulate_amx);
    nb::class_<Matrix>(m, "Matrix").def_ro("bytes", &Matrix::bytes);
    m.def("matrix", &matrix, "data"_a, "format"_a, "rows"_a, "columns"_a, "group"_a, "count"_a);
    m.def("linear", &linear);
    m.def("quantise", &quantise);
    m.def("swiglu", &swiglu);
    m.def("norm", &norm);
    m.def("attend", &attend);
    m.def("likeliest", &likeliest);
    m.def("bandwidth", &bandwidth);
    leadline::bind_training(m);
    nb::class_<Model>(m, "Model")
        .def(nb::new_(&make_model), "shape"_a, "isa"_a, "threads"_a)
        .def("bind_matrix", &Model::bind_matrix)
        .def("bind_vector", [](Model& model, int layer, const std::string& name,
                               uintptr_t values) { model.bind_vector(layer, name, at<const float>(values)); })
        .def("bind_embedding", [](Model& model, uintptr_t rows, bool half) { model.bind_embedding(at<const void>(rows), half); })
        .def("check", &Model::check)
        .def("forward", &forward)
        .def("logits", [](Model& model, uintptr_t hidden, int rows, uintptr_t out) {
            nb::gil_scoped_release release;
            model.logits(at<const float>(hidden), rows, at<float>(out));
        })
        .def("experts", [](Model& model, int layer, uintptr_t x, int tokens, uintptr_t ids, uintptr_t gates, uintptr_t out) {
            nb::gil_scoped_release release;
            model.experts_of(layer, at<const float>(x), tokens, at<const int32_t>(ids), at<const float>(gates), at<float>(out));
        })
        .def("routing", &routing)
        .def("moe_layers", &Model::moe_layers)
        .def("buffer_bytes", &Model::buffer_bytes)
        .def("bytes_read", &Model::bytes_read)
        .def("threads", [](Model& model) { return model.pool().threads(); });
}
