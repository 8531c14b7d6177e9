// The gradient of the weight of a large linear layer in bfloat16 on AMX's tiles.
//
// Its sums are short, one term a row, and its results are as large as the weight: they go to memory past the caches, two
// tiles of inputs and two of outputs multiplied while what was computed before is rounded and written; or they do not go
// to memory at all, where the weight is updated by them.
#include "large_linear.h"
#include "tiles.h"

namespace rcnn {
namespace {

constexpr int64_t SIDE = TILE_SIDE, STEP = TILE_DEPTH, WIDTH = LARGE_WIDTH;
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
  load_factors(now.grad, half, now.inputs, half);
  for (int64_t i = 0; i < count; ++i) {
    const Factors next = factors(i + 1 < count ? i + 1 : i);
    zero_sums();
#pragma GCC unroll 4
    for (int64_t k = 1; k <= depth; ++k)
      step<past>(k < depth ? Factors{now.grad + k * TILE, now.inputs + k * TILE} : next, half, earlier, quarter);
    store_sums(sums[i % 2]);
    finish_writing(sums[i % 2]);
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

// The sums of one width of outputs and the inputs of a piece.
struct Width {
  const LargeGradientPiece& piece;
  const int64_t depth;
  char* sums;

  int64_t stride() const { return piece.inputs + LARGE_APART; }
  const float* row(int64_t i) const { return reinterpret_cast<const float*>(sums) + i * stride(); }

  void compute(const char* grad, const char* inputs) const {
    const int64_t half = depth * TILE, line = stride() * 4;
    load_factors(grad, half, inputs, half);
    for (int64_t input = 0; input < piece.inputs; input += WIDTH, inputs += 2 * half) {
      zero_sums();
      for (int64_t k = 1; k < depth; ++k) multiply_and_load(grad + k * TILE, half, inputs + k * TILE, half);
      multiply_and_load(grad, half, inputs + (input + WIDTH < piece.inputs ? 2 * half : 0), half);
      char* to = sums + input * 4;
      _tile_stored(0, to, line);
      _tile_stored(1, to + LINE, line);
      _tile_stored(2, to + SIDE * line, line);
      _tile_stored(3, to + SIDE * line + LINE, line);
    }
    finish_writing(sums);
  }
};

struct Updater {
  const Update& rule;
  const __m512 factor = _mm512_set1_ps(rule.momentum), decay = _mm512_set1_ps(rule.decay), lr = _mm512_set1_ps(rule.lr);
  const __m512 most = _mm512_set1_ps(rule.clip), least = _mm512_set1_ps(-rule.clip);

  __m512 updated(__m512 grad, float* weight, float* momentum) const {
    if (rule.clip > 0) grad = _mm512_max_ps(least, _mm512_min_ps(most, grad));
    const __m512 w = _mm512_loadu_ps(weight);
    const __m512 step = _mm512_fmadd_ps(factor, _mm512_loadu_ps(momentum), _mm512_fmadd_ps(decay, w, grad));
    const __m512 result = _mm512_fnmadd_ps(lr, step, w);
    _mm512_storeu_ps(momentum, step);
    _mm512_storeu_ps(weight, result);
    return result;
  }

  // `beyond`: values from the end of this row to the piece's next one, which memory is asked for in time.
  template <bool past>
  void row(const float* grad, float* weight, float* momentum, bfloat16* low, int64_t count, int64_t beyond) const {
    constexpr int64_t AHEAD = 768;
    for (int64_t i = 0; i < count; i += WIDTH) {
      const int64_t ahead = i + AHEAD < count ? i + AHEAD : i + AHEAD + beyond;
      for (int64_t half = 0; half < WIDTH; half += SIDE) {
        fetch_near(reinterpret_cast<const char*>(weight + ahead + half));
        fetch_near(reinterpret_cast<const char*>(momentum + ahead + half));
      }
      const __m512 one = updated(_mm512_load_ps(grad + i), weight + i, momentum + i);
      const __m512 other = updated(_mm512_load_ps(grad + i + SIDE), weight + i + SIDE, momentum + i + SIDE);
      const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(other, one);
      if constexpr (past)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(low + i), rounded);
      else
        _mm512_storeu_si512(low + i, rounded);
    }
  }
};

template <bool past>
void update_all(const LargeUpdate& layer, const LargeGradientPiece& piece, const char* grad, const char* inputs, char* sums) {
  const int64_t across = layer.gradient.inputs, bytes = layer.gradient.width_bytes();
  const Width width{piece, layer.gradient.depth(), sums};
  const Updater updater{layer.rule};
  for (int64_t output = piece.output; output < piece.output + piece.outputs; output += WIDTH) {
    width.compute(grad + output / WIDTH * bytes, inputs + piece.input / WIDTH * bytes);
    for (int64_t i = 0; i < WIDTH; ++i) {
      const int64_t at = (output + i) * across + piece.input;
      updater.row<past>(width.row(i), layer.weight + at, layer.momentum + at, layer.low + at, piece.inputs,
                        across - piece.inputs);
    }
  }
}

// The rows of a piece are updated as they lie in memory, and are long, so that the processor fetches them in time.
void update(const LargeUpdate& layer, const LargeGradientPiece& piece, const char* grad, const char* inputs, char* sums) {
  configure();
  finish_writing(grad);
  const bool past = reinterpret_cast<uintptr_t>(layer.low) % LINE == 0;
  (past ? update_all<true> : update_all<false>)(layer, piece, grad, inputs, sums);
  _tile_release();  // oneDNN's kernels have sizes of their own
  _mm_sfence();
}

}  // namespace

extern const LargeGradientKernels large_gradient_amx = {pack_grad, pack_inputs, multiply};
extern const LargeUpdateKernel large_update_amx = update;

}  // namespace rcnn
