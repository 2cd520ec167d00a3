"""Kernels of our own for CPUs: matrices in kernel layout (`layout`), the C++ (`csrc`) and its binding (`native`)."""
