"""The C++ kernels for the CPU, built by CMake as `_native`."""
