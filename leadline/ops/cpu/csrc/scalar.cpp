// Plain C++: every machine. Slow, and the same bits.
#define LEADLINE_ISA scalar
#include "table.h"

namespace leadline {

const Kernels& scalar_kernels() {
    static const Kernels table = scalar::table("scalar");
    return table;
}

}  // namespace leadline
