// The table of one instruction set; included once by each translation unit that is compiled for one.
#pragma once

#include "kernels.h"
#include "matmul.h"
// They use what is above.
#include "attention.h"
#include "latent.h"
#include "rows.h"

namespace leadline {
namespace LEADLINE_ISA {

inline Kernels table(const char* name) {
    Kernels k{};
    k.name = name;
    k.matmul = matmul, k.swiglu = swiglu, k.quantise = quantise, k.norm = norm, k.add = add, k.combine = combine;
    k.softmax = softmax, k.segment = segment, k.join = join, k.divide = divide;
    k.encode_row = encode_row, k.decode_row = decode_row;
    k.to_bf16 = to_bf16, k.from_bf16 = from_bf16, k.likeliest = likeliest;
    return k;
}

}  // namespace LEADLINE_ISA
}  // namespace leadline
