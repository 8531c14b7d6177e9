// Geometry of RoIs (which cells, which weights) and the division of work between threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "drivers.h"
#include "parallel.h"

namespace rcnn {
namespace {

// Weights of one axis of a RoI, in compressed rows.
struct TapTable {
  std::vector<int32_t> start{0};
  std::vector<int32_t> index;
  std::vector<float> weight;

  void clear() {
    start.assign(1, 0);
    index.clear();
    weight.clear();
  }
  void close_row() { start.push_back(int32_t(index.size())); }
  void add(int32_t at, float value) {
    if (value == 0) return;  // an untouched cell may hold NaN
    index.push_back(at);
    weight.push_back(value);
  }
  Taps view() const { return {start.data(), index.data(), weight.data()}; }
};

struct Axis {
  float begin, length;  // of the RoI on the feature map
  int64_t cells;
  int size;
};

// How many samples a bin takes along an axis.
int64_t grid_of(const RoiProblem& p, const Axis& axis) {
  if (p.sampling_ratio > 0) return p.sampling_ratio;
  const float grid = std::ceil(axis.length / axis.size);
  return grid > 0 ? int64_t(std::min(grid, 1e9f)) : 0;  // 0 also for NaN
}

// The samples [first, last) that can lie within a cell of the map; a RoI far larger than the map has millions outside.
void visible_samples(float begin, float step, int64_t cells, int64_t grid, int64_t& first, int64_t& last) {
  first = 0;
  last = grid;
  if (!(step > 0) || grid < 64) return;
  const float low = (-1 - begin) / step - 2, high = (cells - begin) / step + 2;
  first = int64_t(std::clamp(low, 0.f, float(grid)));
  last = int64_t(std::clamp(high, 0.f, float(grid)));
}

// Adds the two interpolation weights of every sample of one bin to `dense`; returns the range of cells touched.
Span sample_bin(const Axis& axis, int bin, int64_t grid, float factor, float* dense) {
  const float bin_length = axis.length / axis.size, step = bin_length / grid, begin = axis.begin + bin * bin_length;
  Span touched{int32_t(axis.cells), 0};
  int64_t first, last;
  visible_samples(begin, step, axis.cells, grid, first, last);
  for (int64_t i = first; i < last; ++i) {
    float at = begin + (i + .5f) * step;
    if (!(at >= -1 && at <= axis.cells)) continue;
    at = std::clamp(at, 0.f, float(axis.cells - 1));
    const int32_t low = int32_t(at), high = std::min<int32_t>(low + 1, int32_t(axis.cells - 1));
    const float part = at - low;
    dense[low] += (1 - part) * factor;
    dense[high] += part * factor;
    touched = {std::min(touched.lo, low), std::max(touched.hi, high + 1)};
  }
  return touched;
}

// Appends `size` rows (one a bin) of cell weights. `dense` has axis.cells zeros and is left so.
void add_bins(const RoiProblem& p, const Axis& axis, float* dense, TapTable& table) {
  const int64_t grid = grid_of(p, axis);
  const float factor = 1.f / std::max<int64_t>(grid, 1);
  for (int bin = 0; bin < axis.size; ++bin) {
    const Span touched = sample_bin(axis, bin, grid, factor, dense);
    for (int32_t cell = touched.lo; cell < touched.hi; ++cell) {
      table.add(cell, dense[cell]);
      dense[cell] = 0;
    }
    table.close_row();
  }
}

Axis axis_of(const RoiProblem& p, int64_t roi, int coordinate, int64_t cells) {
  const float shift = p.aligned ? .5f : 0.f;
  const float* box = p.boxes + 4 * roi;
  const float begin = box[coordinate] * p.spatial_scale - shift, end = box[coordinate + 2] * p.spatial_scale - shift;
  const float length = p.aligned ? end - begin : std::max(end - begin, 1.f);
  if (!std::isfinite(begin) || !std::isfinite(length)) return {NAN, NAN, cells, p.size};  // no sample is on the map
  return {begin, length, cells, p.size};
}

struct Bins {  // tables of one RoI
  TapTable rows, columns;
  std::vector<float> dense;

  void measure(const RoiProblem& p, int64_t roi) {
    dense.resize(std::max(p.shape.height, p.shape.width));
    rows.clear();
    columns.clear();
    add_bins(p, axis_of(p, roi, 1, p.shape.height), dense.data(), rows);
    add_bins(p, axis_of(p, roi, 0, p.shape.width), dense.data(), columns);
  }
};

constexpr int64_t ROIS_A_PIECE = 4;
constexpr int64_t VALUES_A_THREAD = 1 << 17;  // less is done before another thread has started

int worthwhile_threads(const RoiProblem& p) {
  const int64_t values = p.images * p.rois_per_image * p.size * p.size * p.shape.channels;
  return int(std::min<int64_t>(p.threads, 1 + values / VALUES_A_THREAD));
}

template <typename Work>
void each_roi(const RoiProblem& p, const Work& work) {
  const int64_t rois = p.images * p.rois_per_image;
  const int64_t pieces = (rois + ROIS_A_PIECE - 1) / ROIS_A_PIECE;
  parallel(pieces, worthwhile_threads(p), [&](int64_t piece) {
    work(piece * ROIS_A_PIECE, std::min(rois, (piece + 1) * ROIS_A_PIECE));
  });
}

// One axis of one RoI turned around: rows are cells, indices are bins.
struct Transposed {
  std::vector<int32_t> start, index;
  std::vector<float> weight;
  Span touched;

  AxisGradient view() const { return {{start.data(), index.data(), weight.data()}, touched.lo, touched.hi}; }
};

Transposed transpose(const TapTable& bins, int size, int64_t cells) {
  Transposed turned{std::vector<int32_t>(cells + 1), std::vector<int32_t>(bins.index.size()),
                    std::vector<float>(bins.index.size()), {int32_t(cells), 0}};
  for (int32_t cell : bins.index) {
    ++turned.start[cell + 1];
    turned.touched = {std::min(turned.touched.lo, cell), std::max(turned.touched.hi, cell + 1)};
  }
  for (int64_t cell = 0; cell < cells; ++cell) turned.start[cell + 1] += turned.start[cell];
  std::vector<int32_t> next = turned.start;
  for (int bin = 0; bin < size; ++bin)
    for (int32_t i = bins.start[bin]; i < bins.start[bin + 1]; ++i) {
      const int32_t at = next[bins.index[i]]++;
      turned.index[at] = bin;
      turned.weight[at] = bins.weight[i];
    }
  return turned;
}

struct TransposedRoi {
  Transposed rows, columns;
};

std::vector<TransposedRoi> transpose_all(const RoiProblem& p) {
  std::vector<TransposedRoi> all(p.images * p.rois_per_image);
  each_roi(p, [&](int64_t first, int64_t last) {
    Bins bins;
    for (int64_t roi = first; roi < last; ++roi) {
      bins.measure(p, roi);
      all[roi] = {transpose(bins.rows, p.size, p.shape.height), transpose(bins.columns, p.size, p.shape.width)};
    }
  });
  return all;
}

template <typename T>
const RoiKernels<T>& roi_kernels();
template <>
const RoiKernels<float>& roi_kernels() {
  return kernels().roi_float;
}
template <>
const RoiKernels<bfloat16>& roi_kernels() {
  return kernels().roi_bfloat16;
}

template <typename T>
const RoiPoolKernels<T>& roi_pool_kernels();
template <>
const RoiPoolKernels<float>& roi_pool_kernels() {
  return kernels().roi_pool_float;
}
template <>
const RoiPoolKernels<bfloat16>& roi_pool_kernels() {
  return kernels().roi_pool_bfloat16;
}

constexpr int64_t NARROW_BLOCK = 64;  // channels whose sums stay in the cache; also one pass of the kernel's registers
constexpr int64_t WIDE_BLOCK = 128;   // the same where a pass reads one bin at a time, and so longer lines are better

// Calls work(image, block) for every block of channels of every image: a sum belongs to one thread, whose order of
// RoIs is fixed, so the result does not depend on the number of threads.
template <typename T, typename Work>
void each_channel_block(const RoiProblem& p, int64_t widest, T* grad_features, const Work& work) {
  const int64_t channels = p.shape.channels, cells = p.shape.height * p.shape.width;
  const int threads = worthwhile_threads(p);
  const int64_t step = p.images * channels / widest < threads ? NARROW_BLOCK : widest;
  const int64_t blocks = (channels + step - 1) / step;
  parallel(p.images * blocks, threads, [&](int64_t piece) {
    const int64_t image = piece / blocks, first = piece % blocks * step;
    const int64_t width = std::min(step, channels - first);
    std::vector<float> sum(cells * width);
    const ChannelBlock block{sum.data(), first, width};
    work(image, block);
    roi_kernels<T>().store_block(block, channels, cells, grad_features + image * cells * channels);
  });
}

// Pixels to cells as Caffe and MXNet do: rounded inclusive corners, at least one cell, bins overlapping by rounding.
void pool_spans(const RoiProblem& p, int64_t roi, int coordinate, int64_t cells, Span* spans) {
  const float* box = p.boxes + 4 * roi + coordinate;
  const float begin = std::round(box[0] * p.spatial_scale), end = std::round(box[2] * p.spatial_scale);
  const bool finite = std::isfinite(begin) && std::isfinite(end);
  const float bin = std::max(end - begin + 1, 1.f) / p.size;
  auto clip = [&](float cell) { return cell > 0 ? int32_t(std::min(cell, float(cells))) : 0; };
  for (int i = 0; i < p.size; ++i) {
    const float low = std::floor(i * bin) + begin, high = std::ceil((i + 1) * bin) + begin;
    spans[i] = finite ? Span{clip(low), clip(high)} : Span{0, 0};
  }
}

// The bins of every RoI.
class PoolBins {
 public:
  explicit PoolBins(const RoiProblem& p) : size(p.size), spans(p.images * p.rois_per_image * 2 * p.size) {
    for (int64_t roi = 0; roi < p.images * p.rois_per_image; ++roi) {
      pool_spans(p, roi, 1, p.shape.height, &spans[roi * 2 * size]);
      pool_spans(p, roi, 0, p.shape.width, &spans[roi * 2 * size + size]);
    }
  }
  RoiBins of(int64_t roi) const { return {&spans[roi * 2 * size], &spans[roi * 2 * size + size], size}; }

 private:
  int size;
  std::vector<Span> spans;
};

Argmax offset(Argmax argmax, int64_t elements) {
  if (!argmax.cells) return argmax;
  return {static_cast<char*>(argmax.cells) + elements * (argmax.wide ? 4 : 2), argmax.wide};
}

constexpr int64_t ROIS_A_GROUP = 32;
constexpr int64_t CACHE = 1 << 20;  // bytes of a map that a core keeps at hand
constexpr int64_t FEW_ROIS = 8;     // are pooled before a map is put in order

// Channels of a map that stay in a core's cache while RoIs are pooled from it.
int64_t block_of_map(const RoiProblem& p, int64_t bytes) {
  const int64_t channels = std::max(p.shape.channels, int64_t(1));
  if (p.rois_per_image < FEW_ROIS) return channels;
  const int64_t fitting = CACHE / std::max(p.shape.height * p.shape.width * bytes, int64_t(1));
  return std::min(channels, std::max(fitting / NARROW_BLOCK, int64_t(1)) * NARROW_BLOCK);
}

// Every image's map, each block of channels by itself: cells of a slice of all channels would lie so regularly that
// they would share a few lines of the cache.
template <typename T>
class Blocks {
 public:
  Blocks(const RoiProblem& p, const T* features, int64_t width) : cells(p.shape.height * p.shape.width) {
    channels = p.shape.channels;
    maps = features;
    if (width >= channels) return;
    packed.reset(new T[p.images * cells * channels]);
    maps = packed.get();
    const int64_t blocks = (channels + width - 1) / width;
    parallel(p.images * blocks, worthwhile_threads(p), [&](int64_t piece) {
      const int64_t image = piece / blocks, first = piece % blocks * width, here = std::min(width, channels - first);
      const T* from = features + image * cells * channels + first;
      T* to = packed.get() + image * cells * channels + first * cells;
      for (int64_t cell = 0; cell < cells; ++cell) std::memcpy(to + cell * here, from + cell * channels, here * sizeof(T));
    });
  }
  const T* at(int64_t image, int64_t first) const { return maps + (image * channels + first) * cells; }

 private:
  int64_t cells, channels;
  const T* maps;
  std::unique_ptr<T[]> packed;
};

}  // namespace

template <typename T>
void roi_align(const RoiProblem& p, const T* features, T* out) {
  const int64_t image_length = p.shape.height * p.shape.width * p.shape.channels;
  const int64_t roi_length = int64_t(p.size) * p.size * p.shape.channels;
  each_roi(p, [&](int64_t first, int64_t last) {
    Bins bins;
    for (int64_t roi = first; roi < last; ++roi) {
      bins.measure(p, roi);
      roi_kernels<T>().align_forward(features + roi / p.rois_per_image * image_length, p.shape, p.size,
                                     bins.rows.view(), bins.columns.view(), out + roi * roi_length);
    }
  });
}

template <typename T>
void roi_align_backward(const RoiProblem& p, const T* grad_out, T* grad_features) {
  const int64_t roi_length = int64_t(p.size) * p.size * p.shape.channels;
  const std::vector<TransposedRoi> transposed = transpose_all(p);
  each_channel_block(p, NARROW_BLOCK, grad_features, [&](int64_t image, ChannelBlock block) {
    std::vector<float> scratch(p.size * block.width);
    for (int64_t roi = image * p.rois_per_image; roi < (image + 1) * p.rois_per_image; ++roi) {
      roi_kernels<T>().align_backward(grad_out + roi * roi_length, p.shape, p.size, transposed[roi].rows.view(),
                                      transposed[roi].columns.view(), block, scratch.data());
    }
  });
}

template <typename T>
void roi_pool(const RoiProblem& p, const T* features, T* out, Argmax argmax) {
  const int64_t channels = p.shape.channels, cells = p.shape.height * p.shape.width;
  const int64_t width = block_of_map(p, sizeof(T)), blocks = (channels + width - 1) / width;
  const int64_t groups = (p.rois_per_image + ROIS_A_GROUP - 1) / ROIS_A_GROUP;
  const PoolBins bins(p);
  const Blocks<T> maps(p, features, width);
  parallel(p.images * blocks * groups, worthwhile_threads(p), [&](int64_t piece) {
    const int64_t image = piece / groups / blocks, first = piece / groups % blocks * width;
    const FeatureShape shape{p.shape.height, p.shape.width, std::min(width, channels - first)};
    const int64_t begin = piece % groups * ROIS_A_GROUP, end = std::min(p.rois_per_image, begin + ROIS_A_GROUP);
    for (int64_t roi = image * p.rois_per_image + begin; roi < image * p.rois_per_image + end; ++roi) {
      const int64_t at = roi * p.size * p.size * channels + first;
      roi_pool_kernels<T>().forward(maps.at(image, first), shape, bins.of(roi), channels, out + at,
                                    offset(argmax, at));
    }
  });
}

template <typename T>
void roi_pool_backward(const RoiProblem& p, const T* grad_out, Argmax argmax, T* grad_features) {
  const PoolBins bins(p);
  each_channel_block(p, WIDE_BLOCK, grad_features, [&](int64_t image, ChannelBlock block) {
    const FeatureShape shape{p.shape.height, p.shape.width, block.width};
    for (int64_t roi = image * p.rois_per_image; roi < (image + 1) * p.rois_per_image; ++roi) {
      const int64_t at = roi * p.size * p.size * p.shape.channels + block.first;
      roi_pool_kernels<T>().backward(grad_out + at, offset(argmax, at), shape, bins.of(roi), p.shape.channels,
                                     block.sum);
    }
  });
}

#define RCNN_INSTANTIATE(T)                                                              \
  template void roi_align<T>(const RoiProblem&, const T*, T*);                           \
  template void roi_align_backward<T>(const RoiProblem&, const T*, T*);                  \
  template void roi_pool<T>(const RoiProblem&, const T*, T*, Argmax);                    \
  template void roi_pool_backward<T>(const RoiProblem&, const T*, Argmax, T*);
RCNN_INSTANTIATE(float)
RCNN_INSTANTIATE(bfloat16)

}  // namespace rcnn
