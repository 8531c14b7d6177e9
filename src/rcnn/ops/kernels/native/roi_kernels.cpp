// RoIAlign on channels-last features; compiled once per instruction set (RCNN_ISA names the table).
#include "vec.h"

namespace {

using namespace rcnn;

// out[c] = sum of rows x columns weights times features, for WIDTH registers of channels held in registers.
template <int WIDTH, typename T>
inline void align_bin(const T* image, FeatureShape shape, Taps rows, Taps columns, int row, int column, T* out) {
  Vec sum[WIDTH] = {};
  for (int i = rows.start[row]; i < rows.start[row + 1]; ++i) {
    const T* line = image + rows.index[i] * shape.width * shape.channels;
    for (int j = columns.start[column]; j < columns.start[column + 1]; ++j) {
      const T* cell = line + columns.index[j] * shape.channels;
      Vec weight = splat(rows.weight[i] * columns.weight[j]);
      for (int k = 0; k < WIDTH; ++k) sum[k] += weight * load(cell + k * LANES);
    }
  }
  for (int k = 0; k < WIDTH; ++k) store(out + k * LANES, sum[k]);
}

template <typename T>
inline void align_one(const T* image, FeatureShape shape, Taps rows, Taps columns, int row, int column, T* out) {
  float sum = 0;
  for (int i = rows.start[row]; i < rows.start[row + 1]; ++i)
    for (int j = columns.start[column]; j < columns.start[column + 1]; ++j)
      sum += rows.weight[i] * columns.weight[j] *
             load_one(image + (rows.index[i] * shape.width + columns.index[j]) * shape.channels);
  store_one(out, sum);
}

template <typename T>
void align_forward(const T* image, FeatureShape shape, int size, Taps rows, Taps columns, T* out) {
  for (int bin = 0; bin < size * size; ++bin, out += shape.channels) {
    const int row = bin / size, column = bin % size;
    int64_t c = 0;
    for (; c + 8 * LANES <= shape.channels; c += 8 * LANES)
      align_bin<8>(image + c, shape, rows, columns, row, column, out + c);
    for (; c + LANES <= shape.channels; c += LANES)
      align_bin<1>(image + c, shape, rows, columns, row, column, out + c);
    for (; c < shape.channels; ++c) align_one(image + c, shape, rows, columns, row, column, out + c);
  }
}

// A block of channels jumps from page to page, where the processor does not foresee the next line.
template <typename T>
inline void prefetch(const T* from, int64_t width) {
  for (int64_t c = 0; c < width; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + c);
}

constexpr int BATCH = 4;  // registers a loop over channels takes at once

// scratch[bin column] = sum over bin rows of weight * gradient, for one row of cells.
template <typename T>
inline void gather_rows(const T* grad_out, int64_t channels, int size, Taps rows, int cell, int64_t width,
                        float* scratch) {
  const int first = rows.start[cell], last = rows.start[cell + 1];
  for (int column = 0; column < size; ++column)
    for (int64_t c = 0; c < width; c += BATCH * LANES) {
      Vec sum[BATCH] = {};
      for (int i = first; i < last; ++i) {
        const T* from = grad_out + (rows.index[i] * size + column) * channels + c;
        for (int k = 0; k < BATCH; ++k) sum[k] += rows.weight[i] * load(from + k * LANES);
      }
      for (int k = 0; k < BATCH; ++k) store(scratch + column * width + c + k * LANES, sum[k]);
    }
}

inline void scatter_columns(const float* scratch, AxisGradient columns, int64_t width, float* line) {
  for (int x = columns.lo; x < columns.hi; ++x) {
    const int first = columns.taps.start[x], last = columns.taps.start[x + 1];
    if (first == last) continue;
    for (int64_t c = 0; c < width; c += BATCH * LANES) {
      float* to = line + x * width + c;
      Vec sum[BATCH];
      for (int k = 0; k < BATCH; ++k) sum[k] = load(to + k * LANES);
      for (int j = first; j < last; ++j) {
        const float* from = scratch + columns.taps.index[j] * width + c;
        for (int k = 0; k < BATCH; ++k) sum[k] += columns.taps.weight[j] * load(from + k * LANES);
      }
      for (int k = 0; k < BATCH; ++k) store(to + k * LANES, sum[k]);
    }
  }
}

template <typename T>
void align_backward_tail(const T* grad_out, FeatureShape shape, int size, AxisGradient rows, AxisGradient columns,
                         ChannelBlock block) {
  for (int y = rows.lo; y < rows.hi; ++y)
    for (int x = columns.lo; x < columns.hi; ++x)
      for (int64_t c = 0; c < block.width; ++c) {
        float sum = 0;
        for (int i = rows.taps.start[y]; i < rows.taps.start[y + 1]; ++i)
          for (int j = columns.taps.start[x]; j < columns.taps.start[x + 1]; ++j)
            sum += rows.taps.weight[i] * columns.taps.weight[j] *
                   load_one(grad_out + (rows.taps.index[i] * size + columns.taps.index[j]) * shape.channels +
                            block.first + c);
        block.sum[(y * shape.width + x) * block.width + c] += sum;
      }
}

template <typename T>
void align_backward(const T* grad_out, FeatureShape shape, int size, AxisGradient rows, AxisGradient columns,
                    ChannelBlock block, float* scratch) {
  if (block.width % (BATCH * LANES)) return align_backward_tail(grad_out, shape, size, rows, columns, block);
  const T* next = grad_out + size * size * shape.channels + block.first;  // the RoI after this one
  const int share = size * size / (rows.hi - rows.lo > 0 ? rows.hi - rows.lo : 1) + 1;
  for (int y = rows.lo; y < rows.hi; ++y) {
    for (int i = 0; i < share; ++i, next += shape.channels) prefetch(next, block.width);
    if (rows.taps.start[y] == rows.taps.start[y + 1]) continue;
    gather_rows(grad_out + block.first, shape.channels, size, rows.taps, y, block.width, scratch);
    scatter_columns(scratch, columns, block.width, block.sum + y * shape.width * block.width);
  }
}

template <typename T>
void store_block(ChannelBlock block, int64_t channels, int64_t cells, T* grad_features) {
  for (int64_t cell = 0; cell < cells; ++cell) {
    const float* from = block.sum + cell * block.width;
    T* to = grad_features + cell * channels + block.first;
    int64_t c = 0;
    for (; c + LANES <= block.width; c += LANES) store(to + c, load(from + c));
    for (; c < block.width; ++c) store_one(to + c, from[c]);
  }
}

template <typename T>
constexpr RoiKernels<T> table() {
  return {align_forward<T>, align_backward<T>, store_block<T>};
}

}  // namespace

namespace rcnn::RCNN_ISA {
extern const RoiKernels<float> roi_float;
extern const RoiKernels<bfloat16> roi_bfloat16;
const RoiKernels<float> roi_float = table<float>();
const RoiKernels<bfloat16> roi_bfloat16 = table<bfloat16>();
}  // namespace rcnn::RCNN_ISA
