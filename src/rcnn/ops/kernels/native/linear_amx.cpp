// A linear layer in bfloat16 on AMX's tiles: products of 16 rows x 32 inputs with 32 inputs x 16 outputs.
#include <immintrin.h>

#include "tables.h"

namespace rcnn {
namespace {

constexpr int64_t STEP = LINEAR_STEP, PANEL = LINEAR_PANEL, ROWS = 32;  // of a block of four tiles of sums
constexpr int64_t STEPS = 8;  // before the next panel; so a panel's weights and a block's rows fit the first cache

// Tiles 0 to 3 are sums, 4 and 5 rows of inputs, 6 and 7 weights.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  TileConfig(int64_t upper, int64_t lower) {
    for (int tile = 0; tile < 8; ++tile) bytes[tile] = 64, rows[tile] = 16;
    rows[0] = rows[1] = rows[4] = uint8_t(upper);
    rows[2] = rows[3] = rows[5] = uint8_t(lower);
  }
};

// Of one panel and one block of rows: a few steps more of their sums.
struct Block {
  const bfloat16* inputs;
  int64_t inputs_stride;
  const bfloat16* weights;
  int64_t steps;
  float* sums;
  int64_t sums_stride;
  const char* next;  // the weights that are wanted after these
  int64_t lines;     // of them, to be fetched at each step
};

template <bool both>  // whether the block has more than 16 rows
void add_products(const Block& block, bool first) {
  const int64_t stride = block.sums_stride * sizeof(float), input_stride = block.inputs_stride * sizeof(bfloat16);
  float* lower = block.sums + 16 * block.sums_stride;
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, block.sums, stride);
    _tile_loadd(1, block.sums + 16, stride);
    if (both) {
      _tile_loadd(2, lower, stride);
      _tile_loadd(3, lower + 16, stride);
    }
  }
  const char* next = block.next;
  for (int64_t step = 0; step < block.steps; ++step) {
    for (int64_t line = 0; line < block.lines; ++line, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    const bfloat16 *inputs = block.inputs + step * STEP, *weights = block.weights + step * STEP * PANEL;
    _tile_loadd(4, inputs, input_stride);
    _tile_loadd(6, weights, 64);
    _tile_loadd(7, weights + STEP * 16, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (both) {
      _tile_loadd(5, inputs + 16 * block.inputs_stride, input_stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, block.sums, stride);
  _tile_stored(1, block.sums + 16, stride);
  if (both) {
    _tile_stored(2, lower, stride);
    _tile_stored(3, lower + 16, stride);
  }
}

// All blocks of rows of one panel.
void add_panel(Block block, int64_t rows, bool first) {
  const int64_t blocks = (rows + ROWS - 1) / ROWS;
  block.lines = (PANEL * STEP * int64_t(sizeof(bfloat16)) / 64 + blocks - 1) / blocks;
  const TileConfig whole(16, 16);
  _tile_loadconfig(&whole);
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS) {
    add_products<true>(block, first);
    block.inputs += ROWS * block.inputs_stride, block.sums += ROWS * block.sums_stride;
    block.next += block.steps * block.lines * 64;
  }
  if (row == rows) return;
  const bool both = rows - row > 16;
  const TileConfig rest(both ? 16 : rows - row, both ? rows - row - 16 : 16);
  _tile_loadconfig(&rest);
  both ? add_products<true>(block, first) : add_products<false>(block, first);
}

void store(const LinearLayer& layer, const LinearPiece& piece, const float* sums) {
  const int64_t first = piece.panel * PANEL, width = piece.panels * PANEL;
  for (int64_t row = 0; row < piece.rows; ++row)
    for (int64_t i = 0; i < width && first + i < layer.outputs; i += 16) {
      const int64_t left = layer.outputs - first - i;
      const __mmask16 inside = left < 16 ? __mmask16((1 << left) - 1) : __mmask16(0xffff);
      __m512 y = _mm512_add_ps(_mm512_loadu_ps(sums + row * width + i),
                               _mm512_maskz_loadu_ps(inside, layer.bias + first + i));
      if (layer.relu) y = _mm512_max_ps(_mm512_setzero_ps(), y);  // of a NaN the second, so it stays
      _mm256_mask_storeu_epi16(layer.out + (piece.row + row) * layer.outputs + first + i, inside,
                               (__m256i)_mm512_cvtneps_pbh(y));
    }
}

void compute(const LinearLayer& layer, const LinearPiece& piece, float* sums) {
  const int64_t all = layer.inputs / STEP, panel_size = layer.inputs * PANEL, width = piece.panels * PANEL;
  const bfloat16 *rows = layer.rows + piece.row * layer.inputs, *weights = layer.weights + piece.panel * panel_size;
  for (int64_t step = 0; step < all; step += STEPS)
    for (int64_t panel = 0; panel < piece.panels; ++panel) {
      const bfloat16* here = weights + panel * panel_size + step * STEP * PANEL;
      const bfloat16* next = panel + 1 < piece.panels ? here + panel_size : weights + (step + STEPS) * STEP * PANEL;
      const int64_t steps = all - step < STEPS ? all - step : STEPS;
      add_panel({rows + step * STEP, layer.inputs, here, steps, sums + panel * PANEL, width,
                 reinterpret_cast<const char*>(next), 0},
                piece.rows, step == 0);
    }
  store(layer, piece, sums);
  _tile_release();
}

}  // namespace

extern const LinearKernel linear_amx = compute;

}  // namespace rcnn
