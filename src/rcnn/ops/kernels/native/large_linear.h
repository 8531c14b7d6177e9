// A linear layer in training, whose weight is as it lies in memory: it changes at every step.
#pragma once
#include "tables.h"

namespace rcnn {

constexpr int64_t LARGE_WIDTH = 32;   // outputs of two tiles
constexpr int64_t LARGE_CHUNK = 256;  // inputs that are summed at a time: eight tiles
constexpr int64_t LARGE_GROUP = 64;   // rows of x whose products are computed together: four tiles

// x (count, inputs) times the transposed weight (outputs, inputs), plus bias (outputs): out (count, outputs).
struct LargeLinear {
  int64_t count, inputs, outputs;  // inputs in whole chunks, outputs in whole widths
  const bfloat16 *x, *weight, *bias;
  bfloat16* out;

  int64_t chunks() const { return inputs / LARGE_CHUNK; }
  int64_t groups() const { return (count + LARGE_GROUP - 1) / LARGE_GROUP; }
};

// Of the results: all of some groups, and some outputs.
struct LargePiece {
  int64_t group, groups, output, outputs;
};

constexpr int64_t LARGE_CHUNK_BYTES = LARGE_CHUNK * LARGE_GROUP * 2;  // of x in one group
inline int64_t large_linear_sums(const LargePiece& piece) { return piece.groups * LARGE_GROUP * piece.outputs * 4; }  // bytes

struct LargeLinearKernels {
  // Writes one chunk of x, of all groups, as tiles of 16 pairs of inputs x 16 rows: (group, pairs: 8, rows: 4).
  void (*pack)(const LargeLinear&, int64_t chunk, char* tiles);
  // Computes a piece from all chunks of packed x.
  void (*multiply)(const LargeLinear&, const LargePiece&, const char* tiles, char* sums);
};

// grad (count, outputs) transposed times x (count, inputs): the gradient of the weight, (outputs, inputs).
struct LargeGradient {
  int64_t count, inputs, outputs;  // inputs and outputs in whole widths
  const bfloat16 *grad, *x;
  bfloat16* weight;

  int64_t depth() const { return (count + TILE_DEPTH - 1) / TILE_DEPTH; }
  int64_t width_bytes() const { return 2 * depth() * TILE_SIDE * TILE_DEPTH * 2; }  // of packed values
};

struct LargeGradientPiece {
  int64_t output, outputs, input, inputs;
};

struct LargeGradientKernels {
  // Write one width of the outputs' gradients as tiles of 16 outputs x 32 rows, and one of the inputs as tiles of 16
  // pairs of rows x 16 inputs: (half: 2, tile of rows).
  void (*pack_grad)(const LargeGradient&, int64_t output, char* tiles);
  void (*pack_inputs)(const LargeGradient&, int64_t input, char* tiles);
  void (*multiply)(const LargeGradient&, const LargeGradientPiece&, const char* grad, const char* inputs);
};

// A step of SGD by that gradient, which is never in memory.
struct LargeUpdate {
  LargeGradient gradient;  // without a weight
  Update rule;
  float *weight, *momentum;  // (outputs, inputs)
  bfloat16* low;             // receives the new weight
};

constexpr int64_t LARGE_APART = 16;  // values between rows of sums, which so lie elsewhere in the first cache
inline int64_t large_update_sums(int64_t inputs) { return LARGE_WIDTH * (inputs + LARGE_APART) * 4; }  // bytes

// Updates the weights of a piece, by sums of one width of outputs at a time.
using LargeUpdateKernel = void (*)(const LargeUpdate&, const LargeGradientPiece&, const char* grad, const char* inputs,
                                   char* sums);

extern const LargeLinearKernels large_linear_amx;
extern const LargeGradientKernels large_gradient_amx;
extern const LargeUpdateKernel large_update_amx;
void large_linear(const LargeLinear&, int threads);      // only where there is AMX
void large_gradient(const LargeGradient&, int threads);  // likewise
void large_update(const LargeUpdate&, int threads);      // likewise

}  // namespace rcnn
