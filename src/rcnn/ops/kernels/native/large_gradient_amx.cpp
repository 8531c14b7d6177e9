// The gradient of the weight of a large linear layer in bfloat16 on AMX's tiles.
//
// Its sums are short, one term a row, and its results are as large as the weight: they go to memory past the caches.
// Two tiles of inputs and two of outputs are multiplied while what was computed before is rounded and written.
#include "large_linear.h"
#include "tiles.h"

namespace rcnn {
namespace {

constexpr int64_t TILE = 1024, LINE = 64, SIDE = TILE_SIDE, STEP = TILE_DEPTH, WIDTH = LARGE_WIDTH;
constexpr int64_t SUMS = 4 * TILE;

// Two rows of a matrix as 16 pairs of values and 16 more; there is nothing below the last row.
struct Pairs {
  __m512i low, high;

  Pairs(const bfloat16* matrix, int64_t row, int64_t count, int64_t columns) {
    const __m512i none = _mm512_setzero_si512();
    const __m512i one = row < count ? read(matrix + row * columns) : none;
    const __m512i other = row + 1 < count ? read(matrix + (row + 1) * columns) : none;
    low = _mm512_unpacklo_epi16(one, other);
    high = _mm512_unpackhi_epi16(one, other);
  }
};

void pack_grad(const LargeGradient& layer, int64_t output, char* tiles) {
  for (int64_t k = 0; k < layer.depth(); ++k, tiles += TILE) {
    __m512i low[16], high[16];
    for (int64_t i = 0; i < SIDE; ++i) {
      const Pairs pairs(layer.grad + output, k * STEP + 2 * i, layer.count, layer.outputs);
      low[i] = pairs.low, high[i] = pairs.high;
    }
    transpose(low);
    transpose(high);
    for (int64_t i = 0; i < SIDE; ++i) {
      write(tiles + i * LINE, low[i]);
      write(tiles + layer.depth() * TILE + i * LINE, high[i]);
    }
  }
}

void pack_inputs(const LargeGradient& layer, int64_t input, char* tiles) {
  for (int64_t i = 0; i < layer.depth() * SIDE; ++i, tiles += LINE) {
    const Pairs pairs(layer.x + input, 2 * i, layer.count, layer.inputs);
    write(tiles, pairs.low);
    write(tiles + layer.depth() * TILE, pairs.high);
  }
}

// 32 outputs x 32 inputs that were summed and are not yet written: four tiles.
struct Results {
  const char* sums;
  bfloat16* weight;
  int64_t stride, row;  // values to the next output; the next to be written

  template <bool past>  // the caches
  void write_rows(int64_t count) {
    for (const int64_t end = row + count; weight && row < end && row < WIDTH; ++row) {
      const char* from = sums + row / SIDE * 2 * TILE + row % SIDE * LINE;
      const __m512i values = (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(from + TILE), _mm512_load_ps(from));
      if constexpr (past)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(weight + row * stride), values);
      else
        _mm512_storeu_si512(weight + row * stride, values);
    }
  }
};

struct Factors {
  const char *grad, *inputs;
};

// Multiplies the factors in the tiles and loads these, while rows of earlier results are written.
template <bool past>
inline __attribute__((always_inline)) void step(const Factors& next, int64_t half, Results& earlier, int64_t quarter) {
  _tile_dpbf16ps(0, 4, 6);
  earlier.write_rows<past>(quarter);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(4, next.grad, LINE);
  earlier.write_rows<past>(quarter);
  _tile_dpbf16ps(2, 5, 6);
  _tile_loadd(6, next.inputs, LINE);
  earlier.write_rows<past>(quarter);
  _tile_dpbf16ps(3, 5, 7);
  _tile_loadd(7, next.inputs + half, LINE);
  _tile_loadd(5, next.grad + half, LINE);
  earlier.write_rows<past>(quarter);
}

void store(char* sums) {
  _tile_stored(0, sums, LINE);
  _tile_stored(1, sums + TILE, LINE);
  _tile_stored(2, sums + 2 * TILE, LINE);
  _tile_stored(3, sums + 3 * TILE, LINE);
  finish_writing(sums);
}

void start(const Factors& now, int64_t half) {
  _tile_loadd(4, now.grad, LINE);
  _tile_loadd(5, now.grad + half, LINE);
  _tile_loadd(6, now.inputs, LINE);
  _tile_loadd(7, now.inputs + half, LINE);
}

template <bool past, int64_t fixed>  // fixed: the depth, if known beforehand
void multiply_all(const LargeGradient& layer, const LargeGradientPiece& piece, const char* grad, const char* inputs) {
  alignas(64) char sums[2][SUMS] = {};
  const int64_t depth = fixed ? fixed : layer.depth(), half = depth * TILE, quarter = (WIDTH / 4 + depth - 1) / depth;
  const int64_t across = piece.inputs / WIDTH, count = piece.outputs / WIDTH * across;
  const auto factors = [&](int64_t i) -> Factors {
    return {grad + (piece.output / WIDTH + i / across) * 2 * half, inputs + (piece.input / WIDTH + i % across) * 2 * half};
  };
  Results earlier{sums[1], nullptr, layer.inputs, 0};
  Factors now = factors(0);
  start(now, half);
  for (int64_t i = 0; i < count; ++i) {
    const Factors next = factors(i + 1 < count ? i + 1 : i);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
#pragma GCC unroll 4
    for (int64_t k = 1; k <= depth; ++k)
      step<past>(k < depth ? Factors{now.grad + k * TILE, now.inputs + k * TILE} : next, half, earlier, quarter);
    store(sums[i % 2]);
    const int64_t output = piece.output + i / across * WIDTH, input = piece.input + i % across * WIDTH;
    earlier = {sums[i % 2], layer.weight + output * layer.inputs + input, layer.inputs, 0};
    now = next;
  }
  earlier.write_rows<past>(WIDTH);
}

void multiply(const LargeGradient& layer, const LargeGradientPiece& piece, const char* grad, const char* inputs) {
  const bool past = reinterpret_cast<uintptr_t>(layer.weight) % LINE == 0;  // whole lines of the cache are written
  configure();
  finish_writing(grad);
  if (past && layer.depth() == 4)
    multiply_all<true, 4>(layer, piece, grad, inputs);
  else
    (past ? multiply_all<true, 0> : multiply_all<false, 0>)(layer, piece, grad, inputs);
  _tile_release();  // oneDNN's kernels have sizes of their own
  _mm_sfence();
}

}  // namespace

extern const LargeGradientKernels large_gradient_amx = {pack_grad, pack_inputs, multiply};

}  // namespace rcnn
