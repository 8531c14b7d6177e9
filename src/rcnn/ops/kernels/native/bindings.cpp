// The Python module. Arrays come through DLPack, so nothing here depends on torch.
#include <nanobind/stl/vector.h>

#include <cstring>

#include "arrays.h"
#include "drivers.h"
#include "parallel.h"

namespace {

using namespace rcnn::arrays;

// Settings of a RoI operator as the bindings receive them.
struct Settings {
  float spatial_scale;
  int sampling_ratio;
  bool aligned;
  int threads;
};

// features (B, h, w, F), boxes (B, R, 4), pooled (B * R, s, s, F).
template <typename Features, typename Pooled>
rcnn::RoiProblem describe(const Features& features, const ConstArray& boxes, const Pooled& pooled, Settings settings) {
  if (features.ndim() != 4 || boxes.ndim() != 3 || boxes.shape(2) != 4 || pooled.ndim() != 4 ||
      boxes.dtype() != nb::dtype<float>() || features.dtype() != pooled.dtype() ||
      pooled.shape(0) != boxes.shape(0) * boxes.shape(1) || pooled.shape(3) != features.shape(3) ||
      features.shape(0) != boxes.shape(0))
    throw nb::value_error("roi operator: shapes or types do not fit together");
  if (!is_bfloat16(features.dtype()) && features.dtype() != nb::dtype<float>())
    throw nb::value_error("roi operator: features must be float32 or bfloat16");
  return {int64_t(boxes.shape(0)),
          int64_t(boxes.shape(1)),
          {int64_t(features.shape(1)), int64_t(features.shape(2)), int64_t(features.shape(3))},
          static_cast<const float*>(boxes.data()),
          int(pooled.shape(1)),
          settings.spatial_scale,
          settings.sampling_ratio,
          settings.aligned,
          settings.threads};
}

// Calls work with a null pointer of the arrays' element type.
template <typename A, typename Work>
void with_type(const A& array, const Work& work) {
  nb::gil_scoped_release release;
  if (is_bfloat16(array.dtype()))
    work(static_cast<rcnn::bfloat16*>(nullptr));
  else
    work(static_cast<float*>(nullptr));
}

void roi_align(ConstArray features, ConstArray boxes, Array out, float spatial_scale, int sampling_ratio, bool aligned,
               int threads) {
  const auto problem = describe(features, boxes, out, {spatial_scale, sampling_ratio, aligned, threads});
  with_type(features, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    rcnn::roi_align<T>(problem, data<const T>(features), data<T>(out));
  });
}

void roi_align_backward(ConstArray grad_out, ConstArray boxes, Array grad_features, float spatial_scale,
                        int sampling_ratio, bool aligned, int threads) {
  const auto problem = describe(grad_features, boxes, grad_out, {spatial_scale, sampling_ratio, aligned, threads});
  with_type(grad_out, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    rcnn::roi_align_backward<T>(problem, data<const T>(grad_out), data<T>(grad_features));
  });
}

// An argmax of no elements is not wanted.
void roi_pool(ConstArray features, ConstArray boxes, Array out, Array argmax, float spatial_scale, int threads) {
  const auto problem = describe(features, boxes, out, {spatial_scale, 0, false, threads});
  with_type(features, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const rcnn::Argmax where{argmax.size() ? data<void>(argmax) : nullptr, argmax.itemsize() == 4};
    rcnn::roi_pool<T>(problem, data<const T>(features), data<T>(out), where);
  });
}

void roi_pool_backward(ConstArray grad_out, ConstArray boxes, ConstArray argmax, Array grad_features,
                       float spatial_scale, int threads) {
  const auto problem = describe(grad_features, boxes, grad_out, {spatial_scale, 0, false, threads});
  if (argmax.size() != grad_out.size()) throw nb::value_error("roi_pool_backward: argmax has a wrong shape");
  with_type(grad_out, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const rcnn::Argmax where{data<void>(argmax), argmax.itemsize() == 4};
    rcnn::roi_pool_backward<T>(problem, data<const T>(grad_out), where, data<T>(grad_features));
  });
}

// Max pooling of x (B, H, W, F) into out (B, h, w, F); `where` has out's shape, or no elements if it is not wanted.
struct Pooling {
  rcnn::FeatureShape shape;
  rcnn::MaxPool pool;
  int64_t images;

  template <typename Map, typename Out, typename Where>
  Pooling(const Map& x, const Out& out, const Where& where, int window, int stride, int padding) {
    if (x.ndim() != 4 || out.ndim() != 4 || x.shape(0) != out.shape(0) || x.shape(3) != out.shape(3) ||
        x.dtype() != out.dtype() || (!is_bfloat16(x.dtype()) && x.dtype() != nb::dtype<float>()) ||
        where.dtype() != nb::dtype<uint8_t>() || (where.size() && where.size() != out.size()) || window > 16)
      throw nb::value_error("max_pool: shapes or types do not fit together");
    shape = {int64_t(x.shape(1)), int64_t(x.shape(2)), int64_t(x.shape(3))};
    pool = {window, stride, padding, int64_t(out.shape(1)), int64_t(out.shape(2))};
    images = int64_t(x.shape(0));
  }
  int64_t map() const { return shape.height * shape.width * shape.channels; }
  int64_t pooled() const { return pool.rows * pool.columns * shape.channels; }
};

template <typename T>
const rcnn::MaxPoolKernels<T>& max_pool_kernels() {
  if constexpr (std::is_same_v<T, float>)
    return rcnn::kernels().max_pool_float;
  else
    return rcnn::kernels().max_pool_bfloat16;
}

void max_pool(ConstArray x, Array out, Array where, int window, int stride, int padding, int threads) {
  const Pooling p(x, out, where, window, stride, padding);
  uint8_t* places = where.size() ? data<uint8_t>(where) : nullptr;
  with_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    rcnn::parallel(p.images * p.pool.rows, threads, [&](int64_t piece) {
      const int64_t image = piece / p.pool.rows, y = piece % p.pool.rows, at = piece * p.pool.columns * p.shape.channels;
      max_pool_kernels<T>().forward(data<const T>(x) + image * p.map(), p.shape, p.pool, y, data<T>(out) + at,
                                    places ? places + at : nullptr);
    });
  });
}

void max_pool_backward(ConstArray grad, ConstArray where, Array grad_x, int window, int stride, int padding,
                       int threads) {
  const Pooling p(grad_x, grad, where, window, stride, padding);
  if (where.size() != grad.size()) throw nb::value_error("max_pool_backward: where has a wrong shape");
  with_type(grad, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    rcnn::parallel(p.images * p.shape.height, threads, [&](int64_t piece) {
      const int64_t image = piece / p.shape.height, y = piece % p.shape.height;
      max_pool_kernels<T>().backward(data<const T>(grad) + image * p.pooled(), data<const uint8_t>(where) + image * p.pooled(),
                                     p.shape, p.pool, y, data<T>(grad_x) + piece * p.shape.width * p.shape.channels);
    });
  });
}

using Boxes = ndarray<const float, nb::shape<-1, -1, 4>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Rows = ndarray<T, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;

void nms(Boxes boxes, Rows<const float> scores, Rows<const bool> valid, Rows<int64_t> index, Rows<bool> keep_valid,
         float threshold, float offset, int threads) {
  const int64_t images = boxes.shape(0), count = boxes.shape(1), most = index.shape(1);
  if (int64_t(scores.shape(0)) != images || int64_t(scores.shape(1)) != count || valid.shape(0) != scores.shape(0) ||
      valid.shape(1) != scores.shape(1) || int64_t(index.shape(0)) != images || keep_valid.shape(0) != index.shape(0) ||
      keep_valid.shape(1) != index.shape(1))
    throw nb::value_error("nms: shapes do not fit together");
  nb::gil_scoped_release release;
  rcnn::nms({images, count, most, boxes.data(), scores.data(), valid.data(), threshold, offset, threads}, index.data(),
            keep_valid.data());
}

constexpr int64_t PIECE = 1 << 18;  // elements a thread takes at once

template <typename Work>
void each_piece(int64_t count, int threads, const Work& work) {
  const int64_t pieces = (count + PIECE - 1) / PIECE;
  rcnn::parallel(pieces, threads, [&](int64_t i) { work(i * PIECE, std::min(PIECE, count - i * PIECE)); });
}

bool is_real(const nb::dlpack::dtype& type) { return is_bfloat16(type) || type == nb::dtype<float>(); }

// One step of SGD in place, by the mean of the gradients. A `low` of no elements is not wanted.
void sgd(std::vector<ConstArray> grads, Array weight, Array momentum, Array low, float lr, float factor, float decay,
         float clip, int threads) {
  const int64_t count = weight.size();
  bool fits = !grads.empty() && int64_t(momentum.size()) == count && weight.dtype() == nb::dtype<float>() &&
              momentum.dtype() == nb::dtype<float>() &&
              (!low.size() || (int64_t(low.size()) == count && is_bfloat16(low.dtype())));
  std::vector<const void*> parts;
  for (const ConstArray& grad : grads) {
    fits = fits && int64_t(grad.size()) == count && grad.dtype() == grads[0].dtype() && is_real(grad.dtype());
    parts.push_back(grad.data());
  }
  if (!fits) throw nb::value_error("sgd: shapes or types do not fit together");
  const rcnn::Update update{lr, factor, decay, clip};
  const rcnn::UpdateKernels& kernels = rcnn::kernels().update;
  const bool half = is_bfloat16(grads[0].dtype());
  float *w = data<float>(weight), *m = data<float>(momentum);
  auto* l = low.size() ? data<rcnn::bfloat16>(low) : nullptr;
  nb::gil_scoped_release release;
  each_piece(count, threads, [&](int64_t from, int64_t length) {
    if (half)
      kernels.of_bfloat16(update, reinterpret_cast<const rcnn::bfloat16* const*>(parts.data()), int(parts.size()), w, m,
                          l, from, from + length);
    else
      kernels.of_float(update, reinterpret_cast<const float* const*>(parts.data()), int(parts.size()), w, m, l, from,
                       from + length);
  });
}

constexpr int64_t CACHED = 1 << 13;  // elements that stay in the first cache between two looks at them

// Whether all values are finite in the type of `to`, which receives them; a `to` of no elements is not wanted.
bool all_finite(ConstArray values, Array to, int threads) {
  const bool half = is_bfloat16(values.dtype()), copied = to.size(), narrows = copied && to.dtype() != values.dtype();
  if (!is_real(values.dtype()) || (copied && to.size() != values.size()) || (narrows && (half || !is_bfloat16(to.dtype()))))
    throw nb::value_error("all_finite: float32 or bfloat16 only, and no wider than the values");
  const auto* from = data<const char>(values);
  auto* into = copied ? data<char>(to) : nullptr;
  const size_t size = half ? 2 : 4;
  std::atomic<bool> finite{true};
  nb::gil_scoped_release release;
  const rcnn::UpdateKernels& kernels = rcnn::kernels().update;
  each_piece(values.size(), threads, [&](int64_t first, int64_t length) {
    for (int64_t i = first; i < first + length; i += CACHED) {
      const int64_t count = std::min(CACHED, first + length - i);
      if (narrows)
        kernels.round_to(reinterpret_cast<const float*>(from + i * size),
                         reinterpret_cast<rcnn::bfloat16*>(into + i * 2), count);
      else if (copied)
        std::memcpy(into + i * size, from + i * size, count * size);
      const char* seen = narrows ? into + i * 2 : from + i * size;
      if (!(half || narrows ? kernels.finite_bfloat16(reinterpret_cast<const rcnn::bfloat16*>(seen), count)
                            : kernels.finite_float(reinterpret_cast<const float*>(seen), count)))
        finite = false;
    }
  });
  return finite;
}

using Maps = ndarray<float, nb::shape<-1, -1, -1, -1>, nb::c_contig, nb::device::cpu>;
using ConstMaps = ndarray<const float, nb::shape<-1, -1, -1, -1>, nb::c_contig, nb::device::cpu>;
using Floats = ndarray<const float, nb::shape<-1>, nb::c_contig, nb::device::cpu>;

// inputs (B, h, w, E), weights (36, panels, E, panel), bias (F), maps and add (B, h, w, F). An add of no elements is
// not wanted.
void winograd(ConstMaps inputs, ConstMaps weights, Floats bias, ConstMaps add, Maps maps, bool relu, int threads) {
  const int64_t images = inputs.shape(0), outputs = bias.shape(0);
  const rcnn::FeatureShape shape{int64_t(inputs.shape(1)), int64_t(inputs.shape(2)), int64_t(inputs.shape(3))};
  const float* added = add.size() ? add.data() : nullptr;
  const rcnn::WinogradLayer layer{shape,       images, outputs,     inputs.data(), weights.data(),
                                  bias.data(), added,  maps.data(), relu};
  if (weights.shape(0) != 36 || int64_t(weights.shape(1)) != layer.panels() ||
      int64_t(weights.shape(2)) != shape.channels || int64_t(weights.shape(3)) != rcnn::WINOGRAD_PANEL ||
      int64_t(maps.size()) != images * shape.height * shape.width * outputs || int64_t(maps.shape(3)) != outputs ||
      (add.size() && add.size() != maps.size()))
    throw nb::value_error("winograd: shapes do not fit together");
  nb::gil_scoped_release release;
  rcnn::winograd(layer, threads);
}

// rows (n, E), weights (panels, steps, panel size * step size), bias (F), out (n, F).
void linear(ConstArray rows, ConstArray weights, Floats bias, Array out, bool relu, int threads) {
  const int64_t count = rows.shape(0), inputs = rows.shape(1), outputs = bias.shape(0);
  const int64_t panels = (outputs + rcnn::LINEAR_PANEL - 1) / rcnn::LINEAR_PANEL;
  if (!rcnn::has_amx() || rows.ndim() != 2 || inputs % rcnn::LINEAR_STEP || out.ndim() != 2 ||
      int64_t(weights.size()) != panels * rcnn::LINEAR_PANEL * inputs || int64_t(out.shape(0)) != count ||
      int64_t(out.shape(1)) != outputs || !is_bfloat16(rows.dtype()) || !is_bfloat16(weights.dtype()) ||
      !is_bfloat16(out.dtype()))
    throw nb::value_error("linear: shapes or types do not fit together, or there is no AMX");
  const rcnn::LinearLayer layer{count,       inputs,
                                outputs,     data<rcnn::bfloat16>(rows),
                                data<rcnn::bfloat16>(weights), bias.data(),
                                data<rcnn::bfloat16>(out),     relu};
  nb::gil_scoped_release release;
  rcnn::linear(layer, threads);
}

nb::list instruction_sets() {
  nb::list names;
  for (const rcnn::Kernels& one : rcnn::supported()) names.append(one.name);
  return names;
}

void choose(const char* name) {
  if (!rcnn::choose(name)) throw nb::value_error("choose: this processor does not run that instruction set");
}

void use_team(uintptr_t address) { rcnn::team = reinterpret_cast<rcnn::Team>(address); }

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "CPU kernels of rcnn: arrays are written in place.";
  m.def("instruction_sets", &instruction_sets, "Names of the instruction sets this processor runs, widest first.");
  m.def("has_amx", &rcnn::has_amx, "Whether what runs on AMX can be called: the processor has it, and the system allows it.");
  m.def("choose", &choose, "Use another instruction set than the widest, for tests.");
  m.def("use_team", &use_team, "Run on the threads of the GOMP_parallel at this address; 0: on threads of its own.");
  m.def("nms", &nms, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg().noconvert(), nb::arg(), nb::arg(), nb::arg());
  m.def("sgd", &sgd, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
  m.def("all_finite", &all_finite, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg());
  m.def("max_pool", &max_pool, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg());
  m.def("max_pool_backward", &max_pool_backward, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg(), nb::arg(), nb::arg(), nb::arg());
  m.def("roi_align", &roi_align, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg());
  m.def("roi_align_backward", &roi_align_backward, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg(), nb::arg(), nb::arg(), nb::arg());
  m.def("roi_pool", &roi_pool, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg().noconvert(), nb::arg(), nb::arg());
  m.def("roi_pool_backward", &roi_pool_backward, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg().noconvert(), nb::arg(), nb::arg());
  m.def("winograd", &winograd, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg());
  bind_convolution(m);
  bind_large_linear(m);
  m.def("linear", &linear, nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(),
        nb::arg(), nb::arg());
}
