// The whole forward pass over bound weights: one call a pass, no allocation once the buffers have grown to its size.
//
// The PyTorch model of leadline/model is the reference; the steps below bear its names. Activations are float32; rows
// that meet integer weights are quantised a group at a time, each by itself.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace leadline {

struct Shape {
    int hidden = 0, layers = 0, vocab = 0;
    int heads = 0, nope = 0, rope = 0, values = 0, latent = 0, query_rank = 0;
    int experts = 0, top_k = 0, groups = 1, keep_groups = 1;
    bool normalise = false;
    float factor = 1, eps = 1e-6f, scale = 1;

    int row() const { return latent + rope; }
};

struct LayerWeights {
    Matrix q, q_a, q_b, kv_a, k_b, v_b, o;
    Matrix gate_up, down, router, experts_gate_up, experts_down, shared_gate_up, shared_down;
    const float *input_norm = nullptr, *post_norm = nullptr, *q_a_norm = nullptr, *kv_a_norm = nullptr;
    const float *q_a_bias = nullptr, *kv_a_bias = nullptr, *o_bias = nullptr;
};

// One pass, as leadline/model/batch.py describes it; every pointer is the caller's.
struct Pass {
    int tokens = 0, sequences = 0;
    const int64_t *ids = nullptr, *positions = nullptr, *slots = nullptr;
    const int64_t* starts = nullptr;    // sequences + 1
    const int64_t* contexts = nullptr;  // tokens of each sequence after this pass
    const int64_t* pages = nullptr;     // (sequences, page_columns)
    int page_columns = 0, page_size = 0;
    char* cache = nullptr;  // (layers, rows, row), or (layers, pages, bytes of a page)
    size_t cache_layer_bytes = 0;
    RowFormat cache_format = RowFormat::f32;
    Latents latents;

    size_t row_bytes(int width) const {
        return cache_format == RowFormat::packed ? static_cast<size_t>(latents.row_bytes())
                                                 : static_cast<size_t>(width) * (cache_format == RowFormat::bf16 ? 2 : 4);
    }
    const float *cos = nullptr, *sin = nullptr;  // (positions, rope / 2)
    float* hidden = nullptr;                     // out: (tokens, hidden), normed
};

// Memory that only grows.
template <class T>
class Buffer {
  public:
    T* need(size_t count) {
        if (count > size_) {
            data_.reset(static_cast<T*>(::operator new[](count * sizeof(T), std::align_val_t(64))));
            size_ = count;
        }
        return data_.get();
    }
    T* get() const { return data_.get(); }
    size_t bytes() const { return size_ * sizeof(T); }

  private:
    struct Free {
        void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    std::unique_ptr<T[], Free> data_;
    size_t size_ = 0;
};

// Rows on their way into matrices: as floats, and as codes in whichever groups the matrices have.
class Operand {
  public:
    // Begins anew: `rows` rows of `columns`, to be met by these matrices. `x` may be null for rows that exist as codes
    // only.
    void shape(int rows, int columns, const float* x, int64_t x_stride, std::initializer_list<const Matrix*> matrices);
    void quantise(const Kernels& k, int row);  // from x
    Activations of(const Matrix& w) const;
    Quantised target(const Matrix& w) const;  // for what is made as codes
    size_t bytes() const;

  private:
    struct Codes {
        bool used = false;
        Buffer<int8_t> codes;
        Buffer<float> scales;
        Buffer<int32_t> sums;
        int64_t stride = 0, groups = 0;
    };
    const float* x_ = nullptr;
    int64_t x_stride_ = 0;
    int columns_ = 0;
    Codes codes_[2];  // groups of 32, of 64
};

class Model {
  public:
    Model(const Shape& shape, const Kernels& kernels, int threads);

    // Throws std::invalid_argument for a name that is no weight's; layer -1 is the model's own.
    void bind_matrix(int layer, const std::string& name, const Matrix& matrix);
    void bind_vector(int layer, const std::string& name, const float* values);
    void bind_embedding(const void* rows, bool half);
    void check() const;  // throws std::invalid_argument for what is missing or does not fit

    void forward(const Pass& pass);
    void logits(const float* hidden, int rows, float* out);
    // A layer's experts alone, shared ones included: rows x (tokens, hidden), each token's choices and gates (tokens, top_k)
    // in, their sum (tokens, hidden) out.
    void experts_of(int layer, const float* x, int tokens, const int32_t* ids, const float* gates, float* out);

    const Shape& shape() const { return shape_; }
    const Kernels& kernels() const { return k_; }
    Pool& pool() { return pool_; }
    int moe_layers() const;
    // Of the last pass, (moe layers, tokens, top_k) and (moe layers, tokens, experts).
    const int32_t* routed() const { return ids_.get(); }
    const float* gates() const { return gates_.get(); }
    const float* scores() const { return scores_.get(); }
    size_t buffer_bytes() const;
    // Bytes of weights and cache that all passes so far had to read at least once each: what memory bandwidth bounds.
    size_t bytes_read() const { return read_; }

  private:
    struct Job {
        const Matrix* w;
        float* out;
    };
    void project(std::initializer_list<Job> jobs, const Operand& from, int rows);
    void add_bias(float* rows, const float* bias, int width, int count);
    size_t fixed_bytes(const Pass& pass) const;
    void embed(const Pass& pass);
    void normalise(const float* weight, int tokens, std::initializer_list<const Matrix*> matrices);
    void attention(const Pass& pass, int layer);
    void query(const LayerWeights& w, int tokens);
    void place(const Pass& pass, int layer);
    void write_row(const Pass& pass, char* cache, int64_t slot, const float* row) const;
    void absorb(const LayerWeights& w, int tokens);
    void attend(const Pass& pass, int layer);
    void attend_segments(const Pass& pass, int layer);
    void attend_tokens(const Pass& pass, int layer);
    void expand(const LayerWeights& w, int tokens);
    void dense(const LayerWeights& w, int tokens);
    void moe(const LayerWeights& w, int tokens, int index);
    void route(int token, int index, int tokens);
    void sort(const int32_t* ids, int tokens);
    void experts(const LayerWeights& w, int tokens);
    void combine(const LayerWeights& w, int tokens, int index);
    Context context(const Pass& pass, int layer, int sequence) const;
    void look_ahead(const Pass& pass, Context& c, int64_t first, int64_t sees, int share, int shares) const;

    Shape shape_;
    const Kernels& k_;
    Pool pool_;
    std::vector<LayerWeights> layers_;
    Matrix head_;
    const float* norm_ = nullptr;
    const void* embedding_ = nullptr;
    bool embedding_half_ = false;

    Buffer<float> x_, h_, q_, q_a_, kv_, query_, latent_, value_, out_, act_, shared_act_, pairs_, shared_;
    Buffer<float> parts_, part_most_, part_sum_, most_, sum_, gates_, scores_;
    Buffer<int32_t> ids_;
    Operand normed_, compressed_, nope_, latents_, values_, hidden_, inner_, shared_inner_;
    const float* pending_ = nullptr;  // what the last sublayer gave, not yet added to the residual
    bool split_ = false;
    size_t read_ = 0;

    struct Piece {  // one token's one segment
        int token, sequence;
        int64_t first;
        int visible;
    };
    struct Group {  // neighbouring tokens of one sequence
        int sequence, first, count;
    };
    std::vector<Piece> pieces_;
    std::vector<int64_t> piece_of_;  // each token's first piece
    std::vector<Group> groups_;
    struct Expert {
        int id, first, rows;
    };
    std::vector<Expert> active_;
    std::vector<int32_t> counts_, order_, places_;
};

}  // namespace leadline
