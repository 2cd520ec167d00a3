// The training kernels' Python side: addresses and numbers in, nothing converted, the GIL released while they run.
#include "training_bindings.h"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <tuple>
#include <vector>

#include "training.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace leadline {
namespace {

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

const TrainingKernels& kernels() {
    const TrainingKernels* found = avx512_bf16_kernels();
    if (!found) throw std::invalid_argument("this machine, or this build, has no training kernels");
    return *found;
}

using View = std::tuple<uintptr_t, int64_t, int64_t>;  // address, elements from a token and from a head to the next

Heads heads(const View& view) {
    return {at<uint16_t>(std::get<0>(view)), std::get<1>(view), std::get<2>(view)};
}

AttentionPass attention_pass(const std::vector<int64_t>& starts, int count, int width, int values, float scale,
                             const std::vector<View>& views, uintptr_t sums) {
    AttentionPass pass;
    pass.starts = starts.data(), pass.documents = static_cast<int>(starts.size()) - 1;
    pass.heads = count, pass.width = width, pass.values = values, pass.scale = scale;
    pass.q = heads(views.at(0)), pass.k = heads(views.at(1)), pass.v = heads(views.at(2)), pass.out = heads(views.at(3));
    pass.sums = at<float>(sums);
    if (views.size() > 4) {
        pass.grad_out = heads(views.at(4));
        pass.grad_q = heads(views.at(5)), pass.grad_k = heads(views.at(6)), pass.grad_v = heads(views.at(7));
    }
    return pass;
}

void attention(const std::vector<int64_t>& starts, int count, int width, int values, float scale, const std::vector<View>& views,
               uintptr_t sums, int threads) {
    const AttentionPass pass = attention_pass(starts, count, width, values, scale, views, sums);
    nb::gil_scoped_release release;
    (views.size() > 4 ? kernels().attention_backward : kernels().attention)(pass, threads);
}

// x, gate_up, down, hidden, rows; then out, or grad_out, grad_x, grad_gate_up, grad_down.
void experts(const std::vector<int>& sizes, uintptr_t ids, uintptr_t gates, uintptr_t grad_gates, const std::vector<uintptr_t>& of,
             int threads) {
    ExpertsPass pass;
    pass.tokens = sizes.at(0), pass.slots = sizes.at(1), pass.experts = sizes.at(2);
    pass.width = sizes.at(3), pass.inner = sizes.at(4);
    pass.ids = at<const int64_t>(ids), pass.gates = at<const float>(gates), pass.grad_gates = at<float>(grad_gates);
    pass.x = at<const uint16_t>(of.at(0)), pass.gate_up = at<const uint16_t>(of.at(1)), pass.down = at<const uint16_t>(of.at(2));
    pass.hidden = at<uint16_t>(of.at(3)), pass.rows = at<uint16_t>(of.at(4));
    const bool backward = grad_gates != 0;
    if (backward) {
        pass.grad_out = at<const uint16_t>(of.at(5)), pass.grad_x = at<uint16_t>(of.at(6));
        pass.grad_gate_up = at<uint16_t>(of.at(7)), pass.grad_down = at<uint16_t>(of.at(8));
    } else {
        pass.out = at<uint16_t>(of.at(5));
    }
    nb::gil_scoped_release release;
    (backward ? kernels().experts_backward : kernels().experts)(pass, threads);
}

// x, weight, scales; then out, or grad_out, grad_x, grad_weights.
void norm(int rows, int width, int64_t stride, float eps, const std::vector<uintptr_t>& of, int threads) {
    NormPass pass;
    pass.rows = rows, pass.width = width, pass.stride = stride, pass.eps = eps;
    pass.x = at<const uint16_t>(of.at(0)), pass.weight = at<const uint16_t>(of.at(1)), pass.scales = at<float>(of.at(2));
    const bool backward = of.size() > 4;
    if (backward) {
        pass.grad_out = at<const uint16_t>(of.at(3)), pass.grad_x = at<uint16_t>(of.at(4)), pass.grad_weights = at<float>(of.at(5));
    } else {
        pass.out = at<uint16_t>(of.at(3));
    }
    nb::gil_scoped_release release;
    (backward ? kernels().norm_backward : kernels().norm)(pass, threads);
}

void softmax_nll(uintptr_t logits, uintptr_t targets, uintptr_t scales, int rows, int64_t columns, uintptr_t losses,
                 uintptr_t grads, int threads) {
    nb::gil_scoped_release release;
    kernels().softmax_nll(at<const uint16_t>(logits), at<const int64_t>(targets), at<const float>(scales), rows, columns,
                          at<float>(losses), at<uint16_t>(grads), threads);
}

}  // namespace

void bind_training(nb::module_& m) {
    m.def("training_kernels", [] { return avx512_bf16_kernels() != nullptr; });
    m.def("training_attention", &attention);
    m.def("training_experts", &experts);
    m.attr("NORM_ROWS") = kNormRows;
    m.def("training_norm", &norm);
    m.def("training_softmax_nll", &softmax_nll);
}

}  // namespace leadline
