#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <stdexcept>

namespace leadline {
namespace {

constexpr int64_t kItemBytes = 96 << 10;        // of weights, that one thread takes at a time
constexpr int64_t kPartialBytes = 32 << 20;     // of attention's segments, held at the same time
constexpr int kTokensTogether = 8;              // of one sequence, that read a segment one after the other
constexpr int kExpandRows = 64;
constexpr int kMostExperts = 1024, kMostSlots = 64;

// How many items to hand out at a time, each reading `bytes` of weights for `rows` rows.
int64_t grain(size_t bytes, int rows) {
    const int64_t cost = static_cast<int64_t>(bytes) * std::max(1, rows / 2);
    return std::max<int64_t>(1, kItemBytes / std::max<int64_t>(1, cost));
}

float finite(float x) {
    if (std::isnan(x)) return 0.0f;
    return std::isinf(x) ? std::copysign(std::numeric_limits<float>::max(), x) : x;
}

// Rotates the pairs (x[2i], x[2i + 1]).
void rotate(const float* x, const float* cos, const float* sin, int pairs, float* out) {
    for (int i = 0; i < pairs; ++i) {
        const float even = x[2 * i], odd = x[2 * i + 1];
        out[2 * i] = even * cos[i] - odd * sin[i];
        out[2 * i + 1] = even * sin[i] + odd * cos[i];
    }
}

// Every `step`-th row.
Activations every(Activations a, int step) {
    a.x_stride *= step, a.code_stride *= step, a.group_stride *= step;
    return a;
}

Quantised rows_from(Quantised q, int64_t row) {
    if (q.codes) q.codes += row * q.code_stride, q.scales += row * q.group_stride, q.sums += row * q.group_stride;
    return q;
}

// A thread's own memory for a segment's rows that are packed.
float* room(const Pass& pass, int row) {
    thread_local Buffer<float> rows;
    return pass.cache_format == RowFormat::packed ? rows.need(static_cast<size_t>(kSegment) * row) : nullptr;
}

int up_to(int x, int step) { return (x + step - 1) / step * step; }

}  // namespace

// ---- operands ------------------------------------------------------------------------------------------------------

void Operand::shape(int rows, int columns, const float* x, int64_t x_stride,
                    std::initializer_list<const Matrix*> matrices) {
    x_ = x, x_stride_ = x_stride, columns_ = columns;
    for (Codes& each : codes_) each.used = false;
    for (const Matrix* w : matrices) {
        if (!*w || !w->integer()) continue;
        Codes& to = codes_[w->group == 64];
        if (to.used) continue;
        to.used = true;
        to.stride = up_to(columns, kFfnBlock), to.groups = to.stride / w->group;
        to.codes.need(static_cast<size_t>(rows * to.stride));
        to.scales.need(static_cast<size_t>(rows * to.groups));
        to.sums.need(static_cast<size_t>(rows * to.groups));
    }
}

void Operand::quantise(const Kernels& k, int row) {
    for (int i = 0; i < 2; ++i) {
        Codes& to = codes_[i];
        if (to.used)
            k.quantise(x_ + row * x_stride_, columns_, to.codes.get() + row * to.stride,
                       to.scales.get() + row * to.groups, to.sums.get() + row * to.groups, i ? 64 : 32);
    }
}

Activations Operand::of(const Matrix& w) const {
    Activations a;
    a.x = x_, a.x_stride = x_stride_;
    if (w.integer()) {
        const Codes& from = codes_[w.group == 64];
        a.codes = from.codes.get(), a.code_stride = from.stride;
        a.scales = from.scales.get(), a.sums = from.sums.get(), a.group_stride = from.groups;
    }
    return a;
}

Quantised Operand::target(const Matrix& w) const {
    Quantised q;
    if (w.integer()) {
        const Codes& to = codes_[w.group == 64];
        q = {to.codes.get(), to.stride, to.scales.get(), to.sums.get(), to.groups, w.group};
    }
    return q;
}

size_t Operand::bytes() const {
    size_t total = 0;
    for (const Codes& each : codes_) total += each.codes.bytes() + each.scales.bytes() + each.sums.bytes();
    return total;
}

// ---- binding -------------------------------------------------------------------------------------------------------

Model::Model(const Shape& shape, const Kernels& kernels, int threads)
    : shape_(shape), k_(kernels), pool_(threads), layers_(static_cast<size_t>(shape.layers)) {}

void Model::bind_matrix(int layer, const std::string& name, const Matrix& matrix) {
    static const std::map<std::string, Matrix LayerWeights::*> names = {
        {"q", &LayerWeights::q},
        {"q_a", &LayerWeights::q_a},
        {"q_b", &LayerWeights::q_b},
        {"kv_a", &LayerWeights::kv_a},
        {"k_b", &LayerWeights::k_b},
        {"v_b", &LayerWeights::v_b},
        {"o", &LayerWeights::o},
        {"gate_up", &LayerWeights::gate_up},
        {"down", &LayerWeights::down},
        {"router", &LayerWeights::router},
        {"experts_gate_up", &LayerWeights::experts_gate_up},
        {"experts_down", &LayerWeights::experts_down},
        {"shared_gate_up", &LayerWeights::shared_gate_up},
        {"shared_down", &LayerWeights::shared_down},
    };
    if (layer < 0 && name == "head") {
        head_ = matrix;
        return;
    }
    const auto found = names.find(name);
    if (layer < 0 || layer >= shape_.layers || found == names.end())
        throw std::invalid_argument("no matrix is called " + name);
    layers_[static_cast<size_t>(layer)].*found->second = matrix;
}

void Model::bind_vector(int layer, const std::string& name, const float* values) {
    static const std::map<std::string, const float* LayerWeights::*> names = {
        {"input_norm", &LayerWeights::input_norm}, {"post_norm", &LayerWeights::post_norm},
        {"q_a_norm", &LayerWeights::q_a_norm},     {"kv_a_norm", &LayerWeights::kv_a_norm},
        {"q_a_bias", &LayerWeights::q_a_bias},     {"kv_a_bias", &LayerWeights::kv_a_bias},
        {"o_bias", &LayerWeights::o_bias},
    };
    if (layer < 0 && name == "norm") {
        norm_ = values;
        return;
    }
    const auto found = names.find(name);
    if (layer < 0 || layer >= shape_.layers || found == names.end())
        throw std::invalid_argument("no vector is called " + name);
    layers_[static_cast<size_t>(layer)].*found->second = values;
}

void Model::bind_embedding(const void* rows, bool half) { embedding_ = rows, embedding_half_ = half; }

void Model::check() const {
    const Shape& s = shape_;
    auto fits = [](const char* name, const Matrix& w, int rows, int columns, int count = 1) {
        if (!w) throw std::invalid_argument(std::string(name) + " is missing");
        if (w.rows != rows || w.columns != columns || w.count != count)
            throw std::invalid_argument(std::string(name) + " has another model's shape");
    };
    if (s.experts > kMostExperts || s.top_k > kMostSlots)
        throw std::invalid_argument("more than 1,024 experts, or 64 for a token");
    if (s.row() > kMostWidth) throw std::invalid_argument("a row of the cache wider than 4,096");
    fits("head", head_, s.vocab, s.hidden);
    if (!norm_ || !embedding_) throw std::invalid_argument("the embedding or the final norm is missing");
    for (const LayerWeights& w : layers_) {
        const int queries = s.heads * (s.nope + s.rope);
        if (s.query_rank) {
            fits("q_a", w.q_a, s.query_rank, s.hidden);
            fits("q_b", w.q_b, queries, s.query_rank);
        } else {
            fits("q", w.q, queries, s.hidden);
        }
        fits("kv_a", w.kv_a, s.row(), s.hidden);
        fits("k_b", w.k_b, s.latent, s.nope, s.heads);
        fits("v_b", w.v_b, s.values, s.latent, s.heads);
        fits("o", w.o, s.hidden, s.heads * s.values);
        if (!w.input_norm || !w.post_norm || !w.kv_a_norm || (s.query_rank && !w.q_a_norm))
            throw std::invalid_argument("a norm is missing");
        if (w.router) {
            fits("router", w.router, s.experts, s.hidden);
            const int inner = w.experts_down.columns;
            fits("experts_gate_up", w.experts_gate_up, 2 * up_to(inner, kPanel), s.hidden, s.experts);
            fits("experts_down", w.experts_down, s.hidden, inner, s.experts);
            if (w.shared_down)
                fits("shared_gate_up", w.shared_gate_up, 2 * up_to(w.shared_down.columns, kPanel), s.hidden);
            if (w.router.integer()) throw std::invalid_argument("the router is never quantised");
        } else {
            fits("gate_up", w.gate_up, 2 * up_to(w.down.columns, kPanel), s.hidden);
            fits("down", w.down, s.hidden, w.down.columns);
        }
    }
}

int Model::moe_layers() const {
    return static_cast<int>(
        std::count_if(layers_.begin(), layers_.end(), [](const LayerWeights& w) { return bool(w.router); }));
}

size_t Model::buffer_bytes() const {
    size_t total = ids_.bytes();
    for (const Buffer<float>* each : {&x_, &h_, &q_, &q_a_, &kv_, &query_, &latent_, &value_, &out_, &act_, &shared_act_,
                                      &pairs_, &shared_, &parts_, &part_most_, &part_sum_, &most_, &sum_, &gates_,
                                      &scores_})
        total += each->bytes();
    for (const Operand* each : {&normed_, &compressed_, &nope_, &latents_, &values_, &hidden_, &inner_, &shared_inner_})
        total += each->bytes();
    return total;
}

// ---- the pass ------------------------------------------------------------------------------------------------------

void Model::forward(const Pass& pass) {
    const int tokens = pass.tokens, moe_total = moe_layers();
    if (tokens == 0) return;
    ids_.need(static_cast<size_t>(moe_total) * tokens * shape_.top_k);
    gates_.need(static_cast<size_t>(moe_total) * tokens * shape_.top_k);
    scores_.need(static_cast<size_t>(moe_total) * tokens * shape_.experts);
    read_ += fixed_bytes(pass);
    embed(pass);
    pending_ = nullptr;
    int moe_index = 0;
    for (int layer = 0; layer < shape_.layers; ++layer) {
        const LayerWeights& w = layers_[static_cast<size_t>(layer)];
        attention(pass, layer);
        normalise(w.post_norm, tokens, {&w.gate_up, &w.experts_gate_up, &w.shared_gate_up});
        if (w.router)
            moe(w, tokens, moe_index++);
        else
            dense(w, tokens);
    }
    const int width = shape_.hidden;
    pool_.each(tokens, 4, [&](int t) {
        float* x = x_.get() + static_cast<int64_t>(t) * width;
        if (pending_) k_.add(x, pending_ + static_cast<int64_t>(t) * width, width);
        k_.norm(x, norm_, shape_.eps, width, pass.hidden + static_cast<int64_t>(t) * width);
    });
}

void Model::logits(const float* hidden, int rows, float* out) {
    read_ += rows ? head_.bytes : 0;
    hidden_.shape(rows, shape_.hidden, hidden, shape_.hidden, {&head_});
    pool_.each(rows, 4, [&](int r) { hidden_.quantise(k_, r); });
    project({{&head_, out}}, hidden_, rows);
}

// What a pass reads whatever its tokens choose: every matrix but the experts, and the sequences' cached rows.
size_t Model::fixed_bytes(const Pass& pass) const {
    size_t total = 0;
    for (const LayerWeights& w : layers_)
        for (const Matrix* each : {&w.q, &w.q_a, &w.q_b, &w.kv_a, &w.k_b, &w.v_b, &w.o, &w.gate_up, &w.down, &w.router,
                                   &w.shared_gate_up, &w.shared_down})
            total += *each ? each->bytes * static_cast<size_t>(each->count) : 0;
    const size_t row = pass.row_bytes(shape_.row());
    for (int s = 0; s < pass.sequences; ++s)
        total += static_cast<size_t>(pass.contexts[s]) * row * static_cast<size_t>(shape_.layers);
    return total;
}

void Model::embed(const Pass& pass) {
    const int64_t width = shape_.hidden;
    float* x = x_.need(static_cast<size_t>(pass.tokens * width));
    for (int t = 0; t < pass.tokens; ++t) {
        if (embedding_half_)
            k_.from_bf16(static_cast<const uint16_t*>(embedding_) + pass.ids[t] * width, x + t * width,
                         static_cast<int>(width));
        else
            std::memcpy(x + t * width, static_cast<const float*>(embedding_) + pass.ids[t] * width,
                        sizeof(float) * static_cast<size_t>(width));
    }
}

// Adds what the last sublayer gave to the residual, norms it, and makes it ready for these matrices.
void Model::normalise(const float* weight, int tokens, std::initializer_list<const Matrix*> matrices) {
    const int64_t width = shape_.hidden;
    float* h = h_.need(static_cast<size_t>(tokens * width));
    normed_.shape(tokens, shape_.hidden, h, width, matrices);
    pool_.each(tokens, 4, [&](int t) {
        float* x = x_.get() + t * width;
        if (pending_) k_.add(x, pending_ + t * width, shape_.hidden);
        k_.norm(x, weight, shape_.eps, shape_.hidden, h + t * width);
        normed_.quantise(k_, t);
    });
    pending_ = nullptr;
}

// Each matrix times all rows. Its own outputs are its rows: nothing is padded.
void Model::project(std::initializer_list<Job> jobs, const Operand& from, int rows) {
    size_t widest = 0;
    for (const Job& job : jobs) widest = std::max(widest, job.w->panel_bytes);
    int panels = 0;
    for (const Job& job : jobs) panels += job.w->panels;
    // In steps of the tile's panels, so that neighbours share a tile; one by one where there would be none for a thread.
    const int step = panels < 4 * pool_.threads() ? 1 : 4;
    struct Span {
        const Job* job;
        int first, count;
    };
    auto span_of = [&](int item) {
        int at = item * step;
        for (const Job& job : jobs) {
            const int padded = up_to(job.w->panels, step);
            if (at < padded) return Span{&job, at, std::min(step, job.w->panels - at)};
            at -= padded;
        }
        return Span{nullptr, 0, 0};
    };
    int items = 0;
    for (const Job& job : jobs) items += up_to(job.w->panels, step) / step;
    const int64_t together = grain(widest * step, rows);
    pool_.each(items, together, [&](int item) {
        const Span span = span_of(item);
        const Matrix& w = *span.job->w;
        k_.matmul(w, 0, span.first, span.count, from.of(w), nullptr, rows, span.job->out + span.first * kPanel, w.rows);
    });
}

void Model::add_bias(float* rows, const float* bias, int width, int count) {
    if (bias)
        for (int t = 0; t < count; ++t) k_.add(rows + static_cast<int64_t>(t) * width, bias, width);
}

// ---- attention -----------------------------------------------------------------------------------------------------

void Model::attention(const Pass& pass, int layer) {
    const LayerWeights& w = layers_[static_cast<size_t>(layer)];
    const int tokens = pass.tokens;
    normalise(w.input_norm, tokens, {&w.q, &w.q_a, &w.kv_a});
    query(w, tokens);
    place(pass, layer);
    absorb(w, tokens);
    attend(pass, layer);
    expand(w, tokens);
    float* value = value_.get();
    values_.shape(tokens, shape_.heads * shape_.values, value, shape_.heads * shape_.values, {&w.o});
    pool_.each(tokens, 4, [&](int t) { values_.quantise(k_, t); });
    float* out = out_.need(static_cast<size_t>(tokens) * shape_.hidden);
    project({{&w.o, out}}, values_, tokens);
    add_bias(out, w.o_bias, shape_.hidden, tokens);
    pending_ = out;
}

// Queries and latents (eq. 37, 41), before norm and rotation.
void Model::query(const LayerWeights& w, int tokens) {
    const int width = shape_.heads * (shape_.nope + shape_.rope);
    float* q = q_.need(static_cast<size_t>(tokens) * width);
    float* kv = kv_.need(static_cast<size_t>(tokens) * shape_.row());
    if (!shape_.query_rank) {
        project({{&w.q, q}, {&w.kv_a, kv}}, normed_, tokens);
    } else {
        const int64_t rank = shape_.query_rank;
        float* q_a = q_a_.need(static_cast<size_t>(tokens * rank));
        project({{&w.q_a, q_a}, {&w.kv_a, kv}}, normed_, tokens);
        add_bias(q_a, w.q_a_bias, shape_.query_rank, tokens);
        compressed_.shape(tokens, shape_.query_rank, q_a, rank, {&w.q_b});
        pool_.each(tokens, 4, [&](int t) {
            k_.norm(q_a + t * rank, w.q_a_norm, shape_.eps, shape_.query_rank, q_a + t * rank);
            compressed_.quantise(k_, t);
        });
        project({{&w.q_b, q}}, compressed_, tokens);
    }
    add_bias(kv, w.kv_a_bias, shape_.row(), tokens);
}

// Rotates, norms the latent, writes it to the cache (eq. 39, 41, 43); makes the queries' plain parts ready.
void Model::place(const Pass& pass, int layer) {
    const LayerWeights& w = layers_[static_cast<size_t>(layer)];
    const int heads = shape_.heads, nope = shape_.nope, rope = shape_.rope, row = shape_.row(), latent = shape_.latent;
    float* query = query_.need(static_cast<size_t>(pass.tokens) * heads * row);
    nope_.shape(pass.tokens * heads, nope, q_.get(), nope + rope, {&w.k_b});
    char* cache = pass.cache + pass.cache_layer_bytes * static_cast<size_t>(layer);
    pool_.each(pass.tokens, 4, [&](int t) {
        const float* cos = pass.cos + pass.positions[t] * (rope / 2);
        const float* sin = pass.sin + pass.positions[t] * (rope / 2);
        for (int h = 0; h < heads; ++h) {
            const int64_t line = static_cast<int64_t>(t) * heads + h;
            rotate(q_.get() + line * (nope + rope) + nope, cos, sin, rope / 2, query + line * row + latent);
            nope_.quantise(k_, static_cast<int>(line));
        }
        float* kv = kv_.get() + static_cast<int64_t>(t) * row;
        k_.norm(kv, w.kv_a_norm, shape_.eps, latent, kv);
        rotate(kv + latent, cos, sin, rope / 2, kv + latent);
        write_row(pass, cache, pass.slots[t], kv);
    });
}

void Model::write_row(const Pass& pass, char* cache, int64_t slot, const float* row) const {
    const int width = shape_.row();
    if (pass.cache_format == RowFormat::packed) {
        const int64_t page = slot / pass.page_size, offset = slot % pass.page_size;
        uint8_t* start = reinterpret_cast<uint8_t*>(cache) + page * pass.page_size * pass.latents.row_bytes();
        k_.encode_row(row, pass.latents, start + offset * pass.latents.code_bytes(),
                      start + pass.page_size * pass.latents.code_bytes() + offset * pass.latents.scale_bytes());
    } else if (pass.cache_format == RowFormat::bf16) {
        k_.to_bf16(row, reinterpret_cast<uint16_t*>(cache) + slot * width, width);
    } else {
        float* to = reinterpret_cast<float*>(cache) + slot * width;
        for (int i = 0; i < width; ++i) to[i] = finite(row[i]);
    }
}

// Each head's query in the latent's space (appendix C).
void Model::absorb(const LayerWeights& w, int tokens) {
    const int heads = shape_.heads, row = shape_.row(), step = 8;
    const int blocks = (w.k_b.panels + step - 1) / step;
    const Activations all = nope_.of(w.k_b);
    pool_.each(heads * blocks, grain(w.k_b.panel_bytes * step, tokens), [&](int item) {
        const int head = item / blocks, first = item % blocks * step;
        const int count = std::min(step, w.k_b.panels - first);
        float* out = query_.get() + static_cast<int64_t>(head) * row + first * kPanel;
        k_.matmul(w.k_b, head, first, count, every(all.from(head), heads), nullptr, tokens, out,
                  static_cast<int64_t>(heads) * row);
    });
}

Context Model::context(const Pass& pass, int layer, int sequence) const {
    Context c;
    c.rows = pass.cache + pass.cache_layer_bytes * static_cast<size_t>(layer);
    c.format = pass.cache_format, c.latents = pass.latents;
    c.width = shape_.row(), c.values = shape_.latent;
    c.pages = pass.pages + static_cast<int64_t>(sequence) * pass.page_columns;
    c.page_size = pass.page_size;
    return c;
}

// Of the segment from `first` on, which is read next, one of so many shares: asked for while the one before it is met.
void Model::look_ahead(const Pass& pass, Context& c, int64_t first, int64_t sees, int share, int shares) const {
    const int64_t rows = (kSegment + shares - 1) / shares, at = first + share * rows, offset = at % c.page_size;
    const int64_t count = std::min({rows, sees - at, c.page_size - offset});
    c.ahead = nullptr, c.ahead_bytes = 0;
    if (c.format == RowFormat::packed || count <= 0) return;
    const int64_t bytes = static_cast<int64_t>(pass.row_bytes(c.width));
    c.ahead = static_cast<const char*>(c.rows) + (c.pages[at / c.page_size] * c.page_size + offset) * bytes;
    c.ahead_bytes = count * bytes;
}

void Model::attend(const Pass& pass, int layer) {
    latent_.need(static_cast<size_t>(pass.tokens) * shape_.heads * shape_.latent);
    most_.need(static_cast<size_t>(pass.tokens) * shape_.heads);
    sum_.need(static_cast<size_t>(pass.tokens) * shape_.heads);
    if (layer == 0) {  // the same for every layer of the pass
        pieces_.clear(), groups_.clear(), piece_of_.clear();
        for (int s = 0; s < pass.sequences; ++s) {
            const int64_t begin = pass.starts[s], end = pass.starts[s + 1];
            for (int64_t t = begin; t < end; t += kTokensTogether)
                groups_.push_back({s, static_cast<int>(t), static_cast<int>(std::min<int64_t>(kTokensTogether, end - t))});
            for (int64_t t = begin; t < end; ++t) {
                const int64_t sees = pass.contexts[s] - (end - 1 - t);
                piece_of_.push_back(static_cast<int64_t>(pieces_.size()));
                for (int64_t first = 0; first < sees; first += kSegment)
                    pieces_.push_back({static_cast<int>(t), s, first,
                                       static_cast<int>(std::min<int64_t>(kSegment, sees - first))});
            }
        }
        piece_of_.push_back(static_cast<int64_t>(pieces_.size()));
        const int64_t bytes = static_cast<int64_t>(pieces_.size()) * shape_.heads * shape_.latent * 4;
        split_ = pass.tokens <= 64 && bytes <= kPartialBytes;
    }
    if (split_)
        attend_segments(pass, layer);
    else
        attend_tokens(pass, layer);
}

// Few tokens: every segment of every token by itself; `expand` joins them.
void Model::attend_segments(const Pass& pass, int layer) {
    const int heads = shape_.heads, row = shape_.row(), latent = shape_.latent;
    const int blocks = (heads + kHeads - 1) / kHeads;
    float* parts = parts_.need(pieces_.size() * static_cast<size_t>(heads) * latent);
    float* most = part_most_.need(pieces_.size() * static_cast<size_t>(heads));
    float* sum = part_sum_.need(pieces_.size() * static_cast<size_t>(heads));
    const int64_t cost = static_cast<int64_t>(pieces_.front().visible) * row;
    pool_.each(static_cast<int>(pieces_.size()) * blocks, std::max<int64_t>(1, 4096 / cost), [&](int item) {
        const Piece& piece = pieces_[static_cast<size_t>(item / blocks)];
        const int head = item % blocks * kHeads;
        const int64_t line = static_cast<int64_t>(item / blocks) * heads + head;
        Context seen = context(pass, layer, piece.sequence);
        look_ahead(pass, seen, piece.first + kSegment, pass.contexts[piece.sequence], item % blocks, blocks);
        k_.segment(query_.get() + (static_cast<int64_t>(piece.token) * heads + head) * row, row,
                   std::min(kHeads, heads - head), shape_.scale, seen, piece.first, piece.visible, room(pass, row),
                   parts + line * latent, latent, most + line, sum + line);
    });
}

// Many tokens: neighbours of a sequence meet a segment together, while its rows are in cache.
void Model::attend_tokens(const Pass& pass, int layer) {
    const int heads = shape_.heads, row = shape_.row(), latent = shape_.latent;
    const int blocks = (heads + kHeads - 1) / kHeads;
    pool_.each(static_cast<int>(groups_.size()) * blocks, [&](int item) {
        const Group& group = groups_[static_cast<size_t>(item / blocks)];
        const int head = item % blocks * kHeads, count = std::min(kHeads, heads - head);
        Context seen = context(pass, layer, group.sequence);
        thread_local std::vector<float> next;
        next.resize(static_cast<size_t>(kHeads) * latent);
        const int64_t end = pass.starts[group.sequence + 1], length = pass.contexts[group.sequence];
        const int64_t last = length - (end - group.first - group.count);
        for (int64_t first = 0; first < last; first += kSegment)
            for (int t = group.first; t < group.first + group.count; ++t) {
                const int visible = static_cast<int>(std::min<int64_t>(kSegment, length - (end - 1 - t) - first));
                if (visible <= 0) continue;
                const int64_t line = static_cast<int64_t>(t) * heads + head;
                float next_most[kHeads], next_sum[kHeads];
                float* out = first ? next.data() : latent_.get() + line * latent;
                look_ahead(pass, seen, first + kSegment, last, t - group.first, group.count);
                k_.segment(query_.get() + line * row, row, count, shape_.scale, seen, first, visible, room(pass, row), out,
                           latent, first ? next_most : most_.get() + line, first ? next_sum : sum_.get() + line);
                for (int h = 0; first && h < count; ++h)
                    k_.join(latent_.get() + (line + h) * latent, most_.get()[line + h], sum_.get()[line + h],
                            out + static_cast<int64_t>(h) * latent, next_most[h], next_sum[h], latent);
            }
    });
}

// Joins a token's segments where they were made apart, divides by the sum of the weights, and takes each head's result
// to its value.
void Model::expand(const LayerWeights& w, int tokens) {
    const int heads = shape_.heads, latent = shape_.latent, width = heads * shape_.values;
    float* value = value_.need(static_cast<size_t>(tokens) * width);
    latents_.shape(tokens * heads, latent, latent_.get(), latent, {&w.v_b});
    const Activations all = latents_.of(w.v_b);
    const int blocks = (tokens + kExpandRows - 1) / kExpandRows;
    pool_.each(heads * blocks, grain(w.v_b.bytes, tokens), [&](int item) {
        const int head = item / blocks, first = item % blocks * kExpandRows;
        const int count = std::min(kExpandRows, tokens - first);
        for (int t = first; t < first + count; ++t) {
            const int64_t line = static_cast<int64_t>(t) * heads + head;
            float* out = latent_.get() + line * latent;
            float most = most_.get()[line], sum = sum_.get()[line];
            if (t + 1 < first + count)  // its rows lie too far apart for the processor to ask for the next by itself
                for (int i = 0; i < latent; i += 16) __builtin_prefetch(out + static_cast<int64_t>(heads) * latent + i);
            if (split_)
                for (int64_t piece = piece_of_[static_cast<size_t>(t)]; piece < piece_of_[static_cast<size_t>(t) + 1];
                     ++piece) {
                    const int64_t from = piece * heads + head;
                    const float* part = parts_.get() + from * latent;
                    if (piece == piece_of_[static_cast<size_t>(t)]) {
                        std::memcpy(out, part, sizeof(float) * static_cast<size_t>(latent));
                        most = part_most_.get()[from], sum = part_sum_.get()[from];
                    } else {
                        k_.join(out, most, sum, part, part_most_.get()[from], part_sum_.get()[from], latent);
                    }
                }
            k_.divide(out, sum, latent);
            latents_.quantise(k_, static_cast<int>(line));
        }
        const Activations rows = every(all.from(static_cast<int64_t>(first) * heads + head), heads);
        k_.matmul(w.v_b, head, 0, w.v_b.panels, rows, nullptr, count,
                  value + static_cast<int64_t>(first) * width + static_cast<int64_t>(head) * shape_.values, width);
    });
}

// ---- feed-forward --------------------------------------------------------------------------------------------------

void Model::dense(const LayerWeights& w, int tokens) {
    const int blocks = (w.gate_up.panels + 7) / 8;
    const int64_t stride = static_cast<int64_t>(blocks) * kFfnBlock;
    float* act = w.down.integer() ? nullptr : act_.need(static_cast<size_t>(tokens * stride));
    inner_.shape(tokens, static_cast<int>(stride), act, stride, {&w.down});
    const Activations from = normed_.of(w.gate_up);
    pool_.each(blocks, grain(w.gate_up.panel_bytes * 8, tokens), [&](int block) {
        k_.swiglu(w.gate_up, 0, block, from, nullptr, tokens, act, stride, inner_.target(w.down));
    });
    float* out = out_.need(static_cast<size_t>(tokens) * shape_.hidden);
    project({{&w.down, out}}, inner_, tokens);
    pending_ = out;
}

void Model::moe(const LayerWeights& w, int tokens, int index) {
    float* scores = scores_.get() + static_cast<int64_t>(index) * tokens * shape_.experts;
    project({{&w.router, scores}}, normed_, tokens);
    pool_.each(tokens, 16, [&](int t) { route(t, index, tokens); });
    sort(ids_.get() + static_cast<int64_t>(index) * tokens * shape_.top_k, tokens);
    experts(w, tokens);
    combine(w, tokens, index);
}

// Affinities, choice and gates of one token (eq. 21-22, 2.2.2).
void Model::route(int token, int index, int tokens) {
    const int experts = shape_.experts, top_k = shape_.top_k;
    const int64_t line = static_cast<int64_t>(index) * tokens + token;
    float* scores = scores_.get() + line * experts;
    int32_t* ids = ids_.get() + line * top_k;
    float* gates = gates_.get() + line * top_k;
    k_.softmax(scores, experts);
    const int size = experts / shape_.groups;
    char barred[kMostExperts] = {};
    if (shape_.groups > 1) {
        char kept[kMostExperts] = {};
        for (int n = 0; n < shape_.keep_groups; ++n) {
            int best = -1;
            float most = 0;
            for (int g = 0; g < shape_.groups; ++g) {
                const float peak = *std::max_element(scores + g * size, scores + (g + 1) * size);
                if (!kept[g] && (best < 0 || peak > most)) best = g, most = peak;
            }
            kept[best] = 1;
        }
        for (int e = 0; e < experts; ++e) barred[e] = !kept[e / size];
    }
    float total = 0;
    for (int k = 0; k < top_k; ++k) {
        int best = -1;
        for (int e = 0; e < experts; ++e)
            if (!barred[e] && (best < 0 || scores[e] > scores[best])) best = e;
        barred[best] = 1;
        ids[k] = best, gates[k] = scores[best];
        total += scores[best];
    }
    for (int k = 0; k < top_k; ++k)
        gates[k] = shape_.normalise && top_k > 1 ? gates[k] / (total + 1e-20f) : gates[k] * shape_.factor;
}

// A stable sort of the pairs by expert: `order_` is each pair's token, `places_` where pair (t, k) went.
void Model::sort(const int32_t* ids, int tokens) {
    const int top_k = shape_.top_k, pairs = tokens * top_k;
    counts_.assign(static_cast<size_t>(shape_.experts) + 1, 0);
    order_.resize(static_cast<size_t>(pairs)), places_.resize(static_cast<size_t>(pairs));
    for (int i = 0; i < pairs; ++i) ++counts_[static_cast<size_t>(ids[i]) + 1];
    active_.clear();
    for (int e = 0; e < shape_.experts; ++e) {
        const int rows = counts_[static_cast<size_t>(e) + 1];
        counts_[static_cast<size_t>(e) + 1] += counts_[static_cast<size_t>(e)];
        if (rows) active_.push_back({e, counts_[static_cast<size_t>(e)], rows});
    }
    for (int i = 0; i < pairs; ++i) {
        const int place = counts_[static_cast<size_t>(ids[i])]++;
        places_[static_cast<size_t>(i)] = place;
        order_[static_cast<size_t>(place)] = i / top_k;
    }
}

void Model::experts_of(int layer, const float* x, int tokens, const int32_t* ids, const float* gates, float* out) {
    const LayerWeights& w = layers_[static_cast<size_t>(layer)];
    const size_t pairs = static_cast<size_t>(tokens) * shape_.top_k, numbers = static_cast<size_t>(tokens) * shape_.hidden;
    normed_.shape(tokens, shape_.hidden, x, shape_.hidden, {&w.experts_gate_up, &w.shared_gate_up});
    pool_.each(tokens, 4, [&](int t) { normed_.quantise(k_, t); });
    std::copy_n(gates, pairs, gates_.need(pairs));
    std::fill_n(x_.need(numbers), numbers, 0.0f);
    sort(ids, tokens);
    experts(w, tokens);
    combine(w, tokens, 0);
    std::copy_n(x_.get(), numbers, out);
}

// Every chosen expert over its tokens, and the shared ones over all: up, then down.
void Model::experts(const LayerWeights& w, int tokens) {
    const int pairs = tokens * shape_.top_k, width = shape_.hidden;
    const int shared_blocks = w.shared_down ? (w.shared_gate_up.panels + 7) / 8 : 0;
    const int blocks = (w.experts_gate_up.panels + 7) / 8;
    const int64_t stride = static_cast<int64_t>(blocks) * kFfnBlock, shared_stride = static_cast<int64_t>(shared_blocks) * kFfnBlock;
    float* act = w.experts_down.integer() ? nullptr : act_.need(static_cast<size_t>(pairs * stride));
    inner_.shape(pairs, static_cast<int>(stride), act, stride, {&w.experts_down});
    float* shared_act = nullptr;
    if (shared_blocks) {
        if (!w.shared_down.integer()) shared_act = shared_act_.need(static_cast<size_t>(tokens * shared_stride));
        shared_inner_.shape(tokens, static_cast<int>(shared_stride), shared_act, shared_stride, {&w.shared_down});
    }
    const int active = static_cast<int>(active_.size());
    read_ += active_.size() * (w.experts_gate_up.bytes + w.experts_down.bytes);
    const int per_expert = std::max(1, pairs / std::max(1, active));
    const Activations from = normed_.of(w.experts_gate_up);
    pool_.each(shared_blocks + active * blocks, grain(w.experts_gate_up.panel_bytes * 8, per_expert), [&](int item) {
        if (item < shared_blocks) {
            k_.swiglu(w.shared_gate_up, 0, item, normed_.of(w.shared_gate_up), nullptr, tokens, shared_act,
                      shared_stride, shared_inner_.target(w.shared_down));
            return;
        }
        const Expert& expert = active_[static_cast<size_t>((item - shared_blocks) / blocks)];
        k_.swiglu(w.experts_gate_up, expert.id, (item - shared_blocks) % blocks, from, order_.data() + expert.first,
                  expert.rows, act ? act + expert.first * stride : nullptr, stride,
                  rows_from(inner_.target(w.experts_down), expert.first));
    });
    float* out = pairs_.need(static_cast<size_t>(pairs) * width);
    float* shared = shared_blocks ? shared_.need(static_cast<size_t>(tokens) * width) : nullptr;
    const int step = 8, chunks = (w.experts_down.panels + step - 1) / step, shared_chunks = shared_blocks ? chunks : 0;
    pool_.each(shared_chunks + active * chunks, grain(w.experts_down.panel_bytes * step, per_expert), [&](int item) {
        const bool is_shared = item < shared_chunks;
        const int first = (is_shared ? item : (item - shared_chunks) % chunks) * step;
        const int count = std::min(step, w.experts_down.panels - first);
        if (is_shared) {
            k_.matmul(w.shared_down, 0, first, count, shared_inner_.of(w.shared_down), nullptr, tokens,
                      shared + first * kPanel, width);
            return;
        }
        const Expert& expert = active_[static_cast<size_t>((item - shared_chunks) / chunks)];
        k_.matmul(w.experts_down, expert.id, first, count, inner_.of(w.experts_down).from(expert.first), nullptr,
                  expert.rows, out + static_cast<int64_t>(expert.first) * width + first * kPanel, width);
    });
}

// eq. 20, the residual included: a token's experts by slot, then the shared ones.
void Model::combine(const LayerWeights& w, int tokens, int index) {
    const int top_k = shape_.top_k;
    const int64_t width = shape_.hidden;
    const float* gates = gates_.get() + static_cast<int64_t>(index) * tokens * top_k;
    pool_.each(tokens, 4, [&](int t) {
        const float* rows[kMostSlots];
        for (int k = 0; k < top_k; ++k)
            rows[k] = pairs_.get() + places_[static_cast<size_t>(t * top_k + k)] * width;
        k_.combine(x_.get() + t * width, rows, gates + static_cast<int64_t>(t) * top_k, top_k,
                   w.shared_down ? shared_.get() + t * width : nullptr, shape_.hidden);
    });
}

}  // namespace leadline
