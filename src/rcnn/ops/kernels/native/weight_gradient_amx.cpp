// The gradient of the weight of a convolution of 3 x 3 cells, by products of tiles of bfloat16 (AMX).
//
// A weight's gradient is the sum over places of grad[place] * inputs[place + shift], one shift for each of 9 cells. Tiles
// hold 16 outputs x 32 places of the gradient, and 16 pairs of places x 16 channels of the inputs: pairs that begin at
// even places serve even shifts, those that begin at odd places the others, so that every tile is 1 KB in a row.
#include <cstring>

#include "tiles.h"

namespace {

using rcnn::ConvGradient;
using rcnn::ConvPiece;
using rcnn::RUN;
using rcnn::TILE_DEPTH;
using rcnn::TILE_SIDE;

constexpr int64_t PLACE = 2 * TILE_SIDE;            // bytes of a place in 16 channels
constexpr int64_t PAIR = 2 * TILE_SIDE, CELLS = 9;  // channels or outputs of two tiles; cells of a weight
constexpr int64_t SUMS = 4 * TILE;                  // of two tiles of outputs and two of channels, for one cell

// Where the factors of a sum begin: two tiles' worth of outputs, of channels, and the sums.
struct Factors {
  const char *grad, *inputs;
  char* sums;
};

struct Piece {
  const ConvGradient& conv;
  const ConvPiece part;
  const int64_t line, halo, grad_stride, input_stride;  // strides in bytes, from 16 outputs or channels to the next
  char *sums, *grad, *even, *odd;
  const bfloat16** rows;
  bfloat16* zeros;
  __m512 bias[16] = {};

  Piece(const ConvGradient& of, ConvPiece piece, char* scratch)
      : conv(of), part(piece), line(of.line()), halo(of.halo()), grad_stride(RUN * PLACE),
        input_stride((RUN + 2 * halo) * PLACE) {
    sums = scratch;
    grad = sums + part.outputs * part.channels * CELLS * sizeof(float);
    even = grad + part.outputs / TILE_SIDE * grad_stride;
    odd = even + part.channels / TILE_SIDE * input_stride;
    rows = reinterpret_cast<const bfloat16**>(odd + part.channels / TILE_SIDE * input_stride);
    zeros = reinterpret_cast<bfloat16*>(rows + RUN + 2 * halo + 8);
    std::memset(zeros, 0, sizeof(bfloat16) * (part.outputs > part.channels ? part.outputs : part.channels));
  }

  // Sets `rows` to the first of a map's channels at each of the places; outside of the maps they are zero.
  void locate(const bfloat16* maps, int64_t channels, int64_t first, int64_t count) const {
    int64_t row = (first + 2 * line) / line - 2, column = first - row * line;  // halo <= 2 * line places before the maps
    const bfloat16* begin = begin_of(maps, channels, row);
    for (int64_t k = 0; k < count; ++k) {
      rows[k] = begin && column < conv.shape.width ? begin + column * channels : zeros;
      if (++column == line) begin = begin_of(maps, channels, ++row), column = 0;
    }
  }

  // Where a row of places begins in memory; null: it lies between images or outside of them.
  const bfloat16* begin_of(const bfloat16* maps, int64_t channels, int64_t row) const {
    const int64_t image = row / (conv.shape.height + 1), y = row % (conv.shape.height + 1);
    const bool inside = row >= 0 && image < conv.images && y < conv.shape.height;
    return inside ? maps + (image * conv.shape.height + y) * conv.shape.width * channels : nullptr;
  }

  void pack_grad(int64_t first, int64_t count) {
    locate(conv.grad + part.first_output, conv.outputs, first, count);
    for (int64_t k = 0; k < count; k += TILE_DEPTH)
      for (int64_t f = 0; f < part.outputs; f += PAIR)
        pack_two_tiles(rows + k, f, grad + f / TILE_SIDE * grad_stride + k * PLACE);
  }

  void pack_two_tiles(const bfloat16* const* from, int64_t f, char* to) {
    __m512i low[16], high[16];
    for (int i = 0; i < 16; ++i) {
      const __m512i one = read(from[2 * i] + f), other = read(from[2 * i + 1] + f);
      low[i] = _mm512_unpacklo_epi16(one, other);
      high[i] = _mm512_unpackhi_epi16(one, other);
    }
    if (part.first_channel == 0) add_bias(low, bias[f / TILE_SIDE]), add_bias(high, bias[f / TILE_SIDE + 1]);
    transpose(low);
    for (int i = 0; i < 16; ++i) write(to + i * LINE, low[i]);
    transpose(high);
    for (int i = 0; i < 16; ++i) write(to + grad_stride + i * LINE, high[i]);
  }

  static void add_bias(const __m512i* pairs, __m512& sum) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    __m512 parts[4] = {};
    for (int i = 0; i < 16; ++i) parts[i % 4] = _mm512_dpbf16_ps(parts[i % 4], (__m512bh)pairs[i], ones);
    sum += (parts[0] + parts[1]) + (parts[2] + parts[3]);
  }

  // Of the places `first - halo` to `first + count + halo`, where those of the run before come first.
  void pack_inputs(int64_t first, int64_t count) const {
    const int64_t kept = first ? 2 * halo : 0, fresh = count + 2 * halo - kept;
    for (int64_t c = 0; kept && c < 2 * part.channels / TILE_SIDE; ++c)
      std::memmove(even + c * input_stride, even + c * input_stride + RUN * PLACE, kept * PLACE);
    locate(conv.inputs + part.first_channel, conv.shape.channels, first - halo + kept, fresh + 1);
    for (int64_t k = 0; k < fresh; k += TILE_DEPTH)
      for (int64_t c = 0; c < part.channels; c += PAIR)
        pack_pairs(rows + k, c, fresh - k < TILE_DEPTH ? fresh - k : TILE_DEPTH,
                   c / TILE_SIDE * input_stride + (kept + k) * PLACE);
  }

  void pack_pairs(const bfloat16* const* from, int64_t c, int64_t count, int64_t at) const {
    __m512i one = read(from[0] + c);
    for (int64_t k = 0; k < count; k += 2, at += LINE) {
      const __m512i other = read(from[k + 1] + c), next = read(from[k + 2] + c);
      write(even + at, _mm512_unpacklo_epi16(one, other));
      write(even + at + input_stride, _mm512_unpackhi_epi16(one, other));
      write(odd + at, _mm512_unpacklo_epi16(other, next));
      write(odd + at + input_stride, _mm512_unpackhi_epi16(other, next));
      one = next;
    }
  }

  // Of one cell, 32 outputs and 32 channels, in the order in which they are summed: cells of one row at odd shifts follow
  // each other, since they read the same lines.
  Factors factors(int64_t index) const {
    static constexpr int64_t ORDER[CELLS] = {1, 4, 7, 0, 2, 3, 5, 6, 8};
    const int64_t cell = ORDER[index % CELLS], pairs = part.channels / PAIR;
    const int64_t c = index / CELLS % pairs * 2, f = index / CELLS / pairs * 2;
    const int64_t x = cell % 3, place = halo + (cell / 3 - 1) * line - (x == 0 ? 2 : 0);
    return {grad + f * grad_stride, (x == 1 ? even : odd) + c * input_stride + place * PLACE,
            sums + (index / CELLS * CELLS + cell) * SUMS};
  }

  // Adds all products of a run to the sums. The factors that come next are loaded before sums are stored: a load waits
  // for stores before it that lie as far into a page.
  void add_products(int64_t depth, bool first) const {
    const int64_t count = part.outputs / PAIR * (part.channels / PAIR) * CELLS;
    Factors now = factors(0);
    start(now, first);
    for (int64_t index = 1; index <= count; ++index) {
      const Factors next = factors(index < count ? index : 0);
      multiply(now, next, depth);
      finish(now, next, first);
      now = next;
    }
  }

  void start(const Factors& now, bool first) const {
    load_factors(now.grad, grad_stride, now.inputs, input_stride);
    first ? zero_sums() : load_sums(now.sums);
  }

  void multiply(const Factors& now, const Factors& next, int64_t depth) const {
    const int64_t ahead = (SUMS / LINE + depth - 1) / depth * LINE;  // bytes of the next sums fetched in a step
    const char* fetched = next.sums;
    for (int64_t k = 1; k < depth; ++k) {
      for (int64_t i = 0; i < ahead; i += LINE) _mm_prefetch(fetched + i, _MM_HINT_T0);
      fetched += ahead;
      multiply_and_load(now.grad + k * TILE, grad_stride, now.inputs + k * TILE, input_stride);
    }
    multiply_and_load(next.grad, grad_stride, next.inputs, input_stride);
  }

  static void finish(const Factors& now, const Factors& next, bool first) {
    if (first)
      store_sums(now.sums), zero_sums();
    else
      exchange_sums(now.sums, next.sums);
  }

  void store_weight() const {
    for (int64_t f = 0; f < part.outputs; ++f)
      for (int64_t cell = 0; cell < CELLS; ++cell)
        for (int64_t c = 0; c < part.channels; c += TILE_SIDE) {
          const int64_t index = (f / PAIR * (part.channels / PAIR) + c / PAIR) * CELLS + cell;
          const int64_t tile = f / TILE_SIDE % 2 * 2 + c / TILE_SIDE % 2;
          const char* from = sums + index * SUMS + tile * TILE + f % TILE_SIDE * LINE;
          round_to(conv.weight + ((part.first_output + f) * CELLS + cell) * conv.shape.channels + part.first_channel + c,
                   _mm512_load_ps(from));
        }
  }

  void store_bias() const {
    for (int64_t f = 0; f < part.outputs; f += TILE_SIDE)
      round_to(conv.bias + part.first_output + f, bias[f / TILE_SIDE]);
  }

  static void round_to(bfloat16* to, __m512 values) {
    const __m256bh rounded = _mm512_cvtneps_pbh(values);
    std::memcpy(to, &rounded, sizeof rounded);
  }
};

void weight_gradient(const ConvGradient& conv, ConvPiece part, char* scratch) {
  Piece piece(conv, part, scratch);
  configure();
  for (int64_t first = 0; first < conv.places(); first += RUN) {
    const int64_t left = (conv.places() - first + TILE_DEPTH - 1) / TILE_DEPTH * TILE_DEPTH;
    const int64_t count = left < RUN ? left : RUN;
    piece.pack_grad(first, count);
    piece.pack_inputs(first, count);
    finish_writing(scratch);
    piece.add_products(count / TILE_DEPTH, first == 0);
  }
  _tile_release();  // oneDNN's kernels have sizes of their own
  piece.store_weight();
  if (part.first_channel == 0) piece.store_bias();
}

}  // namespace

namespace rcnn {
extern const WeightGradientKernel weight_gradient_amx;
const WeightGradientKernel weight_gradient_amx = weight_gradient;
}  // namespace rcnn
