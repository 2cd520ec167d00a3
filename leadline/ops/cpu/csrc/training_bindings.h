#pragma once

#include <nanobind/nanobind.h>

namespace leadline {

void bind_training(nanobind::module_& m);

}  // namespace leadline
