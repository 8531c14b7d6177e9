// Arrays of Python as the bindings take them.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "tables.h"

namespace rcnn::arrays {

namespace nb = nanobind;
using nb::ndarray;

using Array = ndarray<nb::c_contig, nb::device::cpu>;
using ConstArray = ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

inline bool is_bfloat16(const nb::dlpack::dtype& type) {
  return type.code == uint8_t(nb::dlpack::dtype_code::Bfloat) && type.bits == 16;
}

template <typename T, typename A>
T* data(const A& array) {
  return static_cast<T*>(const_cast<void*>(static_cast<const void*>(array.data())));
}

}  // namespace rcnn::arrays

// Parts of the module that have a file of their own.
void bind_convolution(nanobind::module_& m);
void bind_large_linear(nanobind::module_& m);
