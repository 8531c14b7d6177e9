// Winograd's convolution of a block of tiles; compiled once per instruction set (RCNN_ISA names the table).
//
// 6 x 6 cells of a map are taken to values at 36 points, multiplied with those of the weights, and summed over the
// channels; from these sums 4 x 4 cells of the result follow. So a block of tiles is 36 products of matrices
// (tiles, channels) x (channels, outputs). The points and their errors: ops/winograd.py.
#include "vec.h"

namespace {

using namespace rcnn;

constexpr int POINTS = 36;
constexpr float ROOT_HALF = 0.70710678f, ROOT_TWO = 1.41421356f;
constexpr int CHUNK = 16;                   // channels of a tile that lie together
constexpr int ROWS = LANES == 16 ? 12 : 6;  // tiles whose sums fit the registers, WIDTH registers each
constexpr int WIDTH = 2;

inline void read(const float* p, Vec& v) { v = load(p); }
inline void read(const float* p, float& v) { v = *p; }
inline void write(float* p, Vec v) { store(p, v); }
inline void write(float* p, float v) { *p = v; }

// Along one axis: the values of six cells at 0, +-sqrt(1/2), +-sqrt(2) and infinity.
template <typename V>
inline void evaluate(const V* x, V* y, int step) {
  const V even_half = x[4] - 2.f * x[2], odd_half = x[3] - 2.f * x[1];
  const V even_two = x[4] - .5f * x[2], odd_two = x[3] - .5f * x[1];
  y[0] = x[0] - 2.5f * x[2] + x[4];
  y[step] = even_half + ROOT_HALF * odd_half;
  y[2 * step] = even_half - ROOT_HALF * odd_half;
  y[3 * step] = even_two + ROOT_TWO * odd_two;
  y[4 * step] = even_two - ROOT_TWO * odd_two;
  y[5 * step] = x[1] - 2.5f * x[3] + x[5];
}

// Four cells from sums at the six points.
template <typename V>
inline void interpolate(const V* x, V* y, int step) {
  const V even_half = x[1] + x[2], odd_half = x[1] - x[2], even_two = x[3] + x[4], odd_two = x[3] - x[4];
  y[0] = x[0] + even_half + even_two;
  y[step] = ROOT_HALF * odd_half + ROOT_TWO * odd_two;
  y[2 * step] = .5f * even_half + 2.f * even_two;
  y[3 * step] = (.5f * ROOT_HALF) * odd_half + (2 * ROOT_TWO) * odd_two + x[5];
}

// SIDE x SIDE cells of a tile: positions in all maps, -1 outside of the tile's own.
template <int SIDE>
struct Cells {
  int64_t at[SIDE * SIDE];

  Cells(const WinogradLayer& layer, int64_t tile, int shift) {
    const int64_t height = layer.shape.height, width = layer.shape.width, row = tile / layer.columns();
    const int64_t left = tile % layer.columns() * WINOGRAD_TILE + shift;
    const int64_t top = row % layer.rows() * WINOGRAD_TILE + shift;
    int64_t line = row / layer.rows() * height * width + top * width + left;
    for (int i = 0; i < SIDE; ++i, line += width)
      for (int j = 0; j < SIDE; ++j) {
        const bool inside = (uint64_t(top + i) < uint64_t(height)) & (uint64_t(left + j) < uint64_t(width));
        at[i * SIDE + j] = inside ? line + j : -1;
      }
  }
};

// Of the channels in one register; a point's values lie `stride` after those of the point before.
template <typename V>
inline void transform_input(const float* const* cells, int64_t channel, float* to, int64_t stride) {
  V half[POINTS];
  for (int j = 0; j < 6; ++j) {
    V x[6];
    for (int i = 0; i < 6; ++i) read(cells[6 * i + j] + channel, x[i]);
    evaluate(x, half + j, 6);
  }
  for (int i = 0; i < 6; ++i) {
    V y[6];
    evaluate(half + 6 * i, y, 1);
    for (int j = 0; j < 6; ++j) write(to + (6 * i + j) * stride, y[j]);
  }
}

template <typename V>
inline void finish(const WinogradLayer& layer, int64_t at, V value) {
  if (layer.add) {
    V add;
    read(layer.add + at, add);
    value += add;
  }
  if (layer.relu) value = value < 0 ? V{} : value;  // a NaN stays one
  write(layer.maps + at, value);
}

template <typename V>
inline void transform_output(const WinogradLayer& layer, const Cells<4>& cells, int64_t channel, const float* from,
                             int64_t stride) {
  V half[24], bias;
  for (int j = 0; j < 6; ++j) {
    V x[6];
    for (int i = 0; i < 6; ++i) read(from + (6 * i + j) * stride, x[i]);
    interpolate(x, half + j, 6);
  }
  read(layer.bias + channel, bias);
  for (int i = 0; i < 4; ++i) {
    V y[4];
    interpolate(half + 6 * i, y, 1);
    for (int j = 0; j < 4; ++j) {
      const int64_t cell = cells.at[4 * i + j];
      if (cell >= 0) finish(layer, cell * layer.outputs + channel, y[j] + bias);
    }
  }
}

// The sums of ROWS tiles for one panel of outputs. Chunks of values lie ROWS * CHUNK apart.
inline void multiply(const float* values, const float* weights, int64_t channels, float* sums, int64_t stride) {
  for (int part = 0; part < WINOGRAD_PANEL; part += WIDTH * LANES) {
    Vec sum[ROWS][WIDTH] = {};
    const float *value = values, *weight = weights + part;
    for (int64_t c = 0; c < channels; c += CHUNK, value += ROWS * CHUNK) {
      const int count = channels - c < CHUNK ? int(channels - c) : CHUNK;
      for (int e = 0; e < count; ++e, weight += WINOGRAD_PANEL) {
        const Vec first = load(weight), second = load(weight + LANES);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; ++row) {
          sum[row][0] += value[row * CHUNK + e] * first;
          sum[row][1] += value[row * CHUNK + e] * second;
        }
      }
    }
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row)
      for (int k = 0; k < WIDTH; ++k) store(sums + row * stride + part + k * LANES, sum[row][k]);
  }
}

// A block's values: (36 points, groups of ROWS tiles, chunks, ROWS, CHUNK), and sums: (36 points, tiles, outputs). Both
// have a chunk too many for each point or tile, lest they lie at multiples of a page, which share few lines of a cache.
struct Block {
  const WinogradLayer& layer;
  int64_t first, last, groups, chunks, panels, group_length, values_stride, line, sums_stride;
  float *values, *sums, *zeros;

  Block(const WinogradLayer& of, int64_t begin, int64_t end, float* scratch) : layer(of), first(begin), last(end) {
    groups = (last - first + ROWS - 1) / ROWS;
    chunks = (layer.shape.channels + CHUNK - 1) / CHUNK;
    panels = layer.panels();
    group_length = chunks * ROWS * CHUNK;
    values_stride = groups * group_length + CHUNK;
    line = panels * WINOGRAD_PANEL + CHUNK;
    sums_stride = groups * ROWS * line + CHUNK;
    values = scratch;
    sums = values + POINTS * values_stride;
    zeros = sums + POINTS * sums_stride;
    for (int64_t c = 0; c < layer.shape.channels; ++c) zeros[c] = 0;
  }

  void transform_inputs() const {
    const int64_t channels = layer.shape.channels;
    for (int64_t tile = 0; tile < last - first; ++tile) {
      const Cells<6> near(layer, first + tile, -1);
      const float* cells[POINTS];
      for (int k = 0; k < POINTS; ++k) cells[k] = near.at[k] < 0 ? zeros : layer.inputs + near.at[k] * channels;
      float* to = values + tile / ROWS * group_length + tile % ROWS * CHUNK;
      auto at = [&](int64_t c) { return to + c / CHUNK * ROWS * CHUNK + c % CHUNK; };
      int64_t c = 0;
      for (; c + LANES <= channels; c += LANES) transform_input<Vec>(cells, c, at(c), values_stride);
      for (; c < channels; ++c) transform_input<float>(cells, c, at(c), values_stride);
    }
  }

  void multiply_all() const {
    for (int64_t point = 0; point < POINTS; ++point)
      for (int64_t panel = 0; panel < panels; ++panel) {
        const float* weights = layer.weights + (point * panels + panel) * layer.shape.channels * WINOGRAD_PANEL;
        const float* from = values + point * values_stride;
        float* to = sums + point * sums_stride + panel * WINOGRAD_PANEL;
        for (int64_t group = 0; group < groups; ++group, from += group_length, to += ROWS * line)
          multiply(from, weights, layer.shape.channels, to, line);
      }
  }

  void transform_outputs() const {
    for (int64_t tile = 0; tile < last - first; ++tile) {
      const Cells<4> cells(layer, first + tile, 0);
      const float* from = sums + tile * line;
      int64_t c = 0;
      for (; c + LANES <= layer.outputs; c += LANES) transform_output<Vec>(layer, cells, c, from + c, sums_stride);
      for (; c < layer.outputs; ++c) transform_output<float>(layer, cells, c, from + c, sums_stride);
    }
  }
};

void winograd(const WinogradLayer& layer, int64_t first, int64_t last, float* scratch) {
  const Block block(layer, first, last, scratch);
  block.transform_inputs();
  block.multiply_all();
  block.transform_outputs();
}

}  // namespace

namespace rcnn::RCNN_ISA {
extern const WinogradKernel winograd_kernel;
const WinogradKernel winograd_kernel = winograd;
}  // namespace rcnn::RCNN_ISA
