// The part of the Python module that is about convolutions in bfloat16 on AMX.
#include "arrays.h"
#include "drivers.h"

namespace {

using namespace rcnn::arrays;
using Floats = ndarray<const float, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using Halves = ndarray<nb::shape<-1, -1, -1, -1>, nb::c_contig, nb::device::cpu>;
using ConstHalves = ndarray<nb::ro, nb::shape<-1, -1, -1, -1>, nb::c_contig, nb::device::cpu>;

// grad (B, h, w, F), inputs (B, h, w, E), weight (F, 3, 3, E), bias (F, 1, 1, 1), all in bfloat16.
void weight_gradient(ConstHalves grad, ConstHalves inputs, Halves weight, Halves bias, int threads) {
  const rcnn::FeatureShape shape{int64_t(inputs.shape(1)), int64_t(inputs.shape(2)), int64_t(inputs.shape(3))};
  const int64_t outputs = grad.shape(3);
  bool fits = rcnn::has_amx() && shape.channels % 32 == 0 && outputs % 32 == 0;
  for (int axis = 0; axis < 3; ++axis) fits = fits && grad.shape(axis) == inputs.shape(axis);
  fits = fits && int64_t(weight.size()) == outputs * 9 * shape.channels && int64_t(bias.size()) == outputs;
  for (const auto& type : {grad.dtype(), inputs.dtype(), weight.dtype(), bias.dtype()})
    fits = fits && is_bfloat16(type);
  if (!fits) throw nb::value_error("weight_gradient: shapes, types or the processor do not fit");
  const rcnn::ConvGradient conv{shape,
                                int64_t(grad.shape(0)),
                                outputs,
                                data<const rcnn::bfloat16>(grad),
                                data<const rcnn::bfloat16>(inputs),
                                data<rcnn::bfloat16>(weight),
                                data<rcnn::bfloat16>(bias)};
  nb::gil_scoped_release release;
  rcnn::weight_gradient(conv, threads);
}

using Packed = ndarray<nb::shape<-1, -1, 9, 1024>, nb::c_contig, nb::device::cpu>;
using ConstPacked = ndarray<nb::ro, nb::shape<-1, -1, 9, 1024>, nb::c_contig, nb::device::cpu>;

using Bytes = ndarray<uint8_t, nb::shape<-1, -1, -1, -1>, nb::c_contig, nb::device::cpu>;

// inputs, positive and masked (B, h, w, E), weights (F / 32, E / 32, 9, 1024), bias (F), add and maps (B, h, w, F), all but the
// bias in bfloat16; pooled maps (B, h / 2, w / 2, F). What has no elements is not wanted. `chosen` is like the maps where
// they are pooled; else inputs, positive and it are pooled (B, h / 2, w / 2, E), where it says what belongs where.
void convolution(ConstHalves inputs, ConstHalves positive, Halves masked, ConstPacked weights, Floats bias, ConstHalves add, Halves maps,
                 Bytes chosen, bool relu, bool pool, int threads) {
  const bool spread = chosen.size() && !pool;
  const auto& whole = spread ? ConstHalves(maps) : inputs;
  const rcnn::FeatureShape shape{int64_t(whole.shape(1)), int64_t(whole.shape(2)), int64_t(inputs.shape(3))};
  const int64_t outputs = 32 * weights.shape(0), part = pool ? 2 : 1, height = shape.height, width = shape.width;
  bool fits = rcnn::has_amx() && int64_t(weights.shape(1)) * 32 == shape.channels && maps.shape(0) == inputs.shape(0) &&
              int64_t(maps.shape(1)) == shape.height / part && int64_t(maps.shape(2)) == shape.width / part &&
              int64_t(maps.shape(3)) == outputs && (!bias.size() || int64_t(bias.size()) == outputs) &&
              (!positive.size() || positive.size() == inputs.size()) &&
              (!chosen.size() || chosen.size() == (pool ? maps.size() : positive.size())) &&
              (!spread || (int64_t(inputs.shape(1)) == height / 2 && int64_t(inputs.shape(2)) == width / 2)) &&
              int64_t(masked.size()) == (positive.size() ? int64_t(inputs.shape(0)) * height * width * shape.channels : 0) && (!add.size() || (add.size() == maps.size() && !pool));
  for (const auto& type : {inputs.dtype(), positive.dtype(), masked.dtype(), weights.dtype(), add.dtype(), maps.dtype()})
    fits = fits && is_bfloat16(type);
  if (!fits) throw nb::value_error("convolution: shapes, types or the processor do not fit");
  const rcnn::Convolution conv{shape,
                               int64_t(inputs.shape(0)),
                               outputs,
                               data<const rcnn::bfloat16>(inputs),
                               {},
                               data<const rcnn::bfloat16>(weights),
                               positive.size() ? data<const rcnn::bfloat16>(positive) : nullptr,
                               positive.size() ? data<rcnn::bfloat16>(masked) : nullptr,
                               bias.size() ? bias.data() : nullptr,
                               add.size() ? data<const rcnn::bfloat16>(add) : nullptr,
                               data<rcnn::bfloat16>(maps),
                               relu,
                               pool,
                               pool && chosen.size() ? chosen.data() : nullptr,
                               spread ? chosen.data() : nullptr};
  nb::gil_scoped_release release;
  rcnn::convolution(conv, threads);
}

// pictures (B, h, w, 3), first (E / 32, 1, 1, 1024), first_bias (E), weights (F / 32, E / 32, 9, 1024), bias (F), maps
// (B, h / 2, w / 2, F), all but the biases in bfloat16.
void stem(ConstHalves pictures, ConstHalves first, Floats first_bias, ConstPacked weights, Floats bias, Halves maps,
          int threads) {
  const int64_t channels = first_bias.size(), outputs = 32 * weights.shape(0);
  const rcnn::FeatureShape shape{int64_t(pictures.shape(1)), int64_t(pictures.shape(2)), channels};
  bool fits = rcnn::has_amx() && pictures.shape(3) == 3 && int64_t(first.size()) == channels * 32 &&
              int64_t(weights.shape(1)) * 32 == channels && int64_t(bias.size()) == outputs &&
              maps.shape(0) == pictures.shape(0) && int64_t(maps.shape(1)) == shape.height / 2 &&
              int64_t(maps.shape(2)) == shape.width / 2 && int64_t(maps.shape(3)) == outputs;
  for (const auto& type : {pictures.dtype(), first.dtype(), weights.dtype(), maps.dtype()})
    fits = fits && is_bfloat16(type);
  if (!fits) throw nb::value_error("stem: shapes, types or the processor do not fit");
  const rcnn::Stem begin{data<const rcnn::bfloat16>(pictures), data<const rcnn::bfloat16>(first), first_bias.data()};
  const rcnn::Convolution conv{shape,
                               int64_t(pictures.shape(0)),
                               outputs,
                               nullptr,
                               begin,
                               data<const rcnn::bfloat16>(weights),
                               nullptr,
                               nullptr,
                               bias.data(),
                               nullptr,
                               data<rcnn::bfloat16>(maps),
                               true,
                               true,
                               nullptr,
                               nullptr};
  nb::gil_scoped_release release;
  rcnn::convolution(conv, threads);
}

// weights (F, 3, 3, E), packed (F / 32, E / 32, 9, 1024), or (E / 32, F / 32, 9, 1024) if transposed, in bfloat16.
void pack_convolution(ConstHalves weights, Packed packed, bool transposed, int threads) {
  const int64_t outputs = weights.shape(0), channels = weights.shape(3);
  if (!rcnn::has_amx() || weights.shape(1) != 3 || weights.shape(2) != 3 || outputs % 32 || channels % 32 ||
      int64_t(packed.shape(0)) * 32 != (transposed ? channels : outputs) || packed.size() != weights.size() ||
      !is_bfloat16(weights.dtype()) || !is_bfloat16(packed.dtype()))
    throw nb::value_error("pack_convolution: shapes, types or the processor do not fit");
  nb::gil_scoped_release release;
  rcnn::pack_convolution({outputs, channels, data<const rcnn::bfloat16>(weights), data<rcnn::bfloat16>(packed), transposed},
                         threads);
}

}  // namespace

void bind_convolution(nanobind::module_& m) {
  m.def("weight_gradient", &weight_gradient, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg().noconvert(), nb::arg());
  m.def("convolution", &convolution, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg(), nb::arg(), nb::arg());
  m.def("stem", &stem, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg().noconvert(), nb::arg().noconvert(), nb::arg());
  m.def("pack_convolution", &pack_convolution, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg());
}
