#include "team.h"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace leadline {
namespace {

using Parallel = void (*)(Region, void*, unsigned, unsigned);

// What compilers call for `#pragma omp parallel`; PyTorch has loaded it, whichever OpenMP it came with.
Parallel openmp() {
#if defined(__linux__)
    return reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
    return nullptr;
#endif
}

}  // namespace

void in_each_thread(Region region, void* data, int threads) {
    static const Parallel parallel = openmp();
    if (threads > 1 && parallel)
        parallel(region, data, static_cast<unsigned>(threads), 0);
    else
        region(data);
}

}  // namespace leadline
