// The part of the Python module that is about large linear layers in training.
#include <initializer_list>

#include "arrays.h"
#include "drivers.h"
#include "large_linear.h"

namespace {

using namespace rcnn::arrays;

bool are_matrices(std::initializer_list<const ConstArray*> arrays) {
  for (const ConstArray* array : arrays)
    if (array->ndim() != 2 || !is_bfloat16(array->dtype())) return false;
  return rcnn::has_amx();
}

// x (n, E), weight (F, E), bias (1, F), out (n, F), all in bfloat16.
void large_linear(ConstArray x, ConstArray weight, ConstArray bias, Array out, int threads) {
  const ConstArray result(out);
  if (!are_matrices({&x, &weight, &bias, &result}) || x.shape(1) % rcnn::LARGE_CHUNK ||
      weight.shape(0) % rcnn::LARGE_WIDTH || weight.shape(1) != x.shape(1) || bias.size() != weight.shape(0) ||
      out.shape(0) != x.shape(0) || out.shape(1) != weight.shape(0))
    throw nb::value_error("large_linear: shapes, types or the processor do not fit");
  const rcnn::LargeLinear layer{int64_t(x.shape(0)),         int64_t(x.shape(1)),
                                int64_t(weight.shape(0)),    data<const rcnn::bfloat16>(x),
                                data<const rcnn::bfloat16>(weight), data<const rcnn::bfloat16>(bias),
                                data<rcnn::bfloat16>(out)};
  nb::gil_scoped_release release;
  rcnn::large_linear(layer, threads);
}

// grad (n, F), x (n, E), weight (F, E), all in bfloat16.
void large_gradient(ConstArray grad, ConstArray x, Array weight, int threads) {
  const ConstArray result(weight);
  if (!are_matrices({&grad, &x, &result}) || grad.shape(0) != x.shape(0) || grad.shape(1) % rcnn::LARGE_WIDTH ||
      x.shape(1) % rcnn::LARGE_WIDTH || weight.shape(0) != grad.shape(1) || weight.shape(1) != x.shape(1))
    throw nb::value_error("large_gradient: shapes, types or the processor do not fit");
  const rcnn::LargeGradient layer{int64_t(x.shape(0)),         int64_t(x.shape(1)),
                                  int64_t(grad.shape(1)),      data<const rcnn::bfloat16>(grad),
                                  data<const rcnn::bfloat16>(x), data<rcnn::bfloat16>(weight)};
  nb::gil_scoped_release release;
  rcnn::large_gradient(layer, threads);
}

// A step of SGD of weight and momentum (F, E) in float32 by the gradient of grad (n, F) and x (n, E); low (F, E) receives
// the new weight. These three in bfloat16.
void large_update(ConstArray grad, ConstArray x, Array weight, Array momentum, Array low, float lr, float factor, float decay,
                  float clip, int threads) {
  const ConstArray copy(low);
  bool fits = are_matrices({&grad, &x, &copy}) && grad.shape(0) == x.shape(0) && grad.shape(1) % rcnn::LARGE_WIDTH == 0 &&
              x.shape(1) % rcnn::LARGE_WIDTH == 0;
  for (const Array* array : {&weight, &momentum, &low})
    fits = fits && array->ndim() == 2 && array->shape(0) == grad.shape(1) && array->shape(1) == x.shape(1);
  if (!fits || weight.dtype() != nb::dtype<float>() || momentum.dtype() != nb::dtype<float>())
    throw nb::value_error("large_update: shapes, types or the processor do not fit");
  const rcnn::LargeUpdate layer{{int64_t(x.shape(0)), int64_t(x.shape(1)), int64_t(grad.shape(1)),
                                 data<const rcnn::bfloat16>(grad), data<const rcnn::bfloat16>(x), nullptr},
                                {lr, factor, decay, clip},
                                data<float>(weight),
                                data<float>(momentum),
                                data<rcnn::bfloat16>(low)};
  nb::gil_scoped_release release;
  rcnn::large_update(layer, threads);
}

}  // namespace

void bind_large_linear(nanobind::module_& m) {
  m.def("large_linear", &large_linear, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg().noconvert(), nb::arg());
  m.def("large_update", &large_update, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
  m.def("large_gradient", &large_gradient, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg());
}
