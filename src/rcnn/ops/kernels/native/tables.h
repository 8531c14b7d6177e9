// The interface between the drivers (plain C++, compiled once) and the kernels (compiled once per instruction set).
//
// Kernel files use no standard library templates: an inline function compiled with AVX-512 in one file could be the
// copy that the linker keeps for all of them.
#pragma once
#include <cstdint>

namespace rcnn {

struct bfloat16 {
  uint16_t bits;
};

// Sparse weights of one axis of one RoI, in compressed rows: row r owns entries start[r] .. start[r + 1].
struct Taps {
  const int32_t* start;
  const int32_t* index;
  const float* weight;
};

struct FeatureShape {
  int64_t height, width, channels;
};

// Cells [lo, hi) of one axis.
struct Span {
  int32_t lo, hi;
};

// A cell range [lo, hi) of one axis that a RoI touches, with its weights: row = cell, index = bin.
struct AxisGradient {
  Taps taps;
  int32_t lo, hi;
};

// A block of `width` channels of one image's gradient, held as packed float32 (cells, width).
struct ChannelBlock {
  float* sum;
  int64_t first, width;
};

// The bins of one RoI; `size` spans of each axis.
struct RoiBins {
  const Span* rows;
  const Span* columns;
  int size;
};

// Positions (row * width + column, -1 for none) as int16, or int32 if wide; null: not wanted.
struct Argmax {
  void* cells;
  bool wide;
};

// Square windows over a map, and how many of them there are.
struct MaxPool {
  int window, stride, padding;
  int64_t rows, columns;
};

// On one image: a row of results, with each one's place in its window unless `where` is null; a row of the gradient.
template <typename T>
struct MaxPoolKernels {
  void (*forward)(const T* image, FeatureShape, MaxPool, int64_t y, T* out, uint8_t* where);
  void (*backward)(const T* grad, const uint8_t* where, FeatureShape, MaxPool, int64_t y, T* grad_row);
};

struct SortedBoxes {
  const float* boxes;  // (count, 4) best first
  int64_t count;
};

template <typename T>
struct RoiKernels {
  // Taps rows are bins, indices are cells; rows already carry the mean's factor.
  void (*align_forward)(const T* image, FeatureShape, int size, Taps rows, Taps columns, T* out);
  void (*align_backward)(const T* grad_out, FeatureShape, int size, AxisGradient rows, AxisGradient columns,
                         ChannelBlock, float* scratch);
  void (*store_block)(ChannelBlock, int64_t channels, int64_t cells, T* grad_features);
};

// On a block of channels, of which `map` and `sum` have no others (shape.channels); out, grad and argmax point at the
// block's first channel in one RoI's bins of `channels`.
template <typename T>
struct RoiPoolKernels {
  void (*forward)(const T* map, FeatureShape, RoiBins, int64_t channels, T* out, Argmax);
  void (*backward)(const T* grad, Argmax, FeatureShape, RoiBins, int64_t channels, float* sum);
};

// What SGD does to a weight: clip 0 leaves gradients as they are.
struct Update {
  float lr, momentum, decay, clip;
};

struct UpdateKernels {
  // Of the elements from `begin` to `end`. The gradient is the mean of its parts; `low`, if any, receives the new weight.
  void (*of_float)(const Update&, const float* const* grads, int parts, float* weight, float* momentum, bfloat16* low,
                   int64_t begin, int64_t end);
  void (*of_bfloat16)(const Update&, const bfloat16* const* grads, int parts, float* weight, float* momentum,
                      bfloat16* low, int64_t begin, int64_t end);
  bool (*finite_float)(const float*, int64_t count);
  bool (*finite_bfloat16)(const bfloat16*, int64_t count);
  void (*round_to)(const float* from, bfloat16* to, int64_t count);
};

constexpr int64_t WINOGRAD_TILE = 4;    // cells along a side
constexpr int64_t WINOGRAD_GROUP = 12;  // tiles whose products are computed together: this many, or half of them
constexpr int64_t WINOGRAD_PANEL = 32;  // outputs whose weights lie together

// A convolution of 3 x 3 cells with a border of one, whose maps are as large as its inputs.
struct WinogradLayer {
  FeatureShape shape;  // of an input
  int64_t images, outputs;
  const float* inputs;   // (images, height, width, channels)
  const float* weights;  // at the points: (36, panels, channels, WINOGRAD_PANEL)
  const float* bias;     // (outputs)
  const float* add;      // to the maps, or none
  float* maps;           // (images, height, width, outputs)
  bool relu;

  int64_t panels() const { return (outputs + WINOGRAD_PANEL - 1) / WINOGRAD_PANEL; }
  int64_t rows() const { return (shape.height + WINOGRAD_TILE - 1) / WINOGRAD_TILE; }  // of tiles
  int64_t columns() const { return (shape.width + WINOGRAD_TILE - 1) / WINOGRAD_TILE; }
  int64_t tiles() const { return images * rows() * columns(); }
};

// Computes the tiles [first, last) of all images; the driver knows how much memory that takes.
typedef void (*WinogradKernel)(const WinogradLayer&, int64_t first, int64_t last, float* scratch);

constexpr int64_t LINEAR_STEP = 32;   // inputs of one product of tiles
constexpr int64_t LINEAR_PANEL = 32;  // outputs whose weights lie together

struct LinearLayer {
  int64_t count, inputs, outputs;  // inputs in whole steps
  const bfloat16* rows;            // (count, inputs)
  const bfloat16* weights;         // (panels, steps, half of the panel: 2, pair of inputs: 16, output: 16, input: 2)
  const float* bias;               // (outputs)
  bfloat16* out;                   // (count, outputs)
  bool relu;
};

struct LinearPiece {
  int64_t row, rows, panel, panels;
};

// Computes a piece of the results; `sums` has room for its rows and panels. Only where there is AMX.
typedef void (*LinearKernel)(const LinearLayer&, const LinearPiece&, float* sums);

constexpr int64_t TILE_SIDE = 16;   // channels of a tile of AMX
constexpr int64_t TILE_DEPTH = 32;  // places of a tile
constexpr int64_t RUN = 256;        // places that are summed at a time; of 192 to 1024 the best for VGG16's layers

// The gradients of the weight and the bias of a convolution of 3 x 3 cells with a border of one.
struct ConvGradient {
  FeatureShape shape;  // of an input; as many channels as fill pairs of tiles, and so the outputs
  int64_t images, outputs;
  const bfloat16* grad;    // of the maps: (images, height, width, outputs)
  const bfloat16* inputs;  // (images, height, width, channels)
  bfloat16* weight;        // (outputs, 3, 3, channels)
  bfloat16* bias;          // (outputs)

  // Places are cells in order of memory with zeros between: after each row, at least one, and a row between images.
  int64_t line() const { return (shape.width + 2) / 2 * 2; }
  int64_t places() const { return (images * (shape.height + 1) - 1) * line(); }
  int64_t halo() const { return line() + 2; }  // what a place's neighbours may lie before it or after it, an even number
};

// What one thread computes at a time.
struct ConvPiece {
  int64_t first_output, outputs, first_channel, channels;
};

// Computes a piece from all places. Only where there is AMX.
typedef void (*WeightGradientKernel)(const ConvGradient&, ConvPiece, char* scratch);

// Bytes of a piece's sums, gradients, inputs (twice), their rows and a row of zeros.
inline int64_t weight_gradient_scratch(const ConvGradient& conv, int64_t outputs, int64_t channels) {
  const int64_t span = RUN + 2 * conv.halo(), widest = outputs > channels ? outputs : channels;
  return 36 * outputs * channels + 2 * outputs * RUN + 4 * channels * span + 8 * (span + 8) + 2 * widest;
}

// A convolution of 3 x 3 cells with a border of one and a ReLU, of pictures: what another convolution sees.
struct Stem {
  const bfloat16* pictures;  // (images, height, width, 3)
  const bfloat16* weights;   // (outputs / 32, half of 32, pair of inputs: 16, output: 16, 2); inputs are 27 values and zeros
  const float* bias;
};

// A convolution of 3 x 3 cells with a border of one, of bfloat16; in and out as many channels as fill pairs of tiles.
struct Convolution {
  FeatureShape shape;  // of an input
  int64_t images, outputs;
  const bfloat16* inputs;    // (images, height, width, channels), or none: they come of the stem
  Stem stem;
  const bfloat16* weights;   // (outputs / 32, channels / 32, cell: 9, half of 32 outputs, pair of channels: 16, output: 16, 2)
  const bfloat16* positive;  // of the inputs' shape, or none: where it is not, the inputs count as zero
  bfloat16* masked;          // receives these inputs; where there is `positive`
  const float* bias;         // (outputs), or none
  const bfloat16* add;       // to the maps, or none
  bfloat16* maps;            // (images, height, width, outputs), or half of height and width
  bool relu, pool;           // pool: the largest of 2 x 2 cells
  uint8_t* chosen;           // receives which of the four it is, in order of memory, for each of the maps; or none
  const uint8_t* spread;     // where pooled inputs belong: they and `positive` have half of height and width; or none

  // Places are cells in order of memory with zeros between: one after each row, and rows between images, so that there
  // is an even number from image to image where they are pooled.
  int64_t line() const { return shape.width + 1; }
  int64_t rows() const { return pool ? shape.height / 2 * 2 + 2 : shape.height + 1; }
  int64_t places() const { return ((images - 1) * rows() + shape.height) * line(); }
  int64_t halo() const { return line() + 1; }  // what a place's neighbours may lie before it or after it

  // Bytes of a row of the picture with a zero cell on both sides, and what is read past its end.
  int64_t picture_line() const { return (2 * 3 * (shape.width + 2) + 64 + 63) / 64 * 64; }
};

// What one thread computes at a time: places of all images, and groups of 32 outputs. Pairs of rows where they are pooled.
struct ConvolutionPiece {
  int64_t first, count, panel, panels;
};

// Computes a piece. Only where there is AMX.
typedef void (*ConvolutionKernel)(const Convolution&, const ConvolutionPiece&, char* scratch);

// Bytes of the inputs of so many places and of the sums of 32 outputs there.
inline int64_t convolution_scratch(const Convolution& conv, int64_t count) {
  const int64_t whole = (count + 31) / 32 * 32;
  return 2 * conv.shape.channels * (whole + 2 * conv.halo()) + 128 * whole + 3 * conv.picture_line();
}

// Weights (outputs, 3, 3, channels) to be put in the order of Convolution; `transposed`: in that of the gradient of the
// inputs, whose outputs are the channels. Of 32 outputs at a time.
struct ConvolutionWeights {
  int64_t outputs, channels;
  const bfloat16* weights;
  bfloat16* packed;
  bool transposed;
};
typedef void (*PackConvolution)(const ConvolutionWeights&, int64_t panel);

struct Kernels {
  const char* name;
  RoiKernels<float> roi_float;
  RoiKernels<bfloat16> roi_bfloat16;
  RoiPoolKernels<float> roi_pool_float;
  RoiPoolKernels<bfloat16> roi_pool_bfloat16;
  MaxPoolKernels<float> max_pool_float;
  MaxPoolKernels<bfloat16> max_pool_bfloat16;
  // Returns how many boxes were kept; `kept` receives their positions. `arena` is memory of nms_arena_bytes(count).
  int64_t (*nms)(SortedBoxes, float threshold, float offset, int64_t most, int32_t* kept, void* arena);
  UpdateKernels update;
  WinogradKernel winograd;
};

// The largest arena that nms can need for `count` boxes; the same for every instruction set.
constexpr int64_t NMS_LANES = 16;
constexpr int NMS_GRID = 16;  // the image is divided into NMS_GRID x NMS_GRID cells

struct NmsChunk {  // boxes whose centres lie in one cell; unused lanes hold an empty box
  alignas(64) float x1[NMS_LANES], y1[NMS_LANES], x2[NMS_LANES], y2[NMS_LANES], area[NMS_LANES];
  int32_t next, used;
};

inline int64_t nms_arena_chunks(int64_t count) {
  return count / NMS_LANES + NMS_GRID * NMS_GRID + 1;
}

}  // namespace rcnn
