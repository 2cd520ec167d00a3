"""The C++ kernels and their layout."""
