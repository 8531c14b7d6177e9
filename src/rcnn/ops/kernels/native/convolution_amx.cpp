// A convolution of 3 x 3 cells by products of tiles of bfloat16 (AMX).
//
// The inputs of a piece are copied once, for each 32 channels place after place, so that 16 places from any cell on are a
// tile, and a neighbour's products need no other. The weights of 32 outputs, 32 channels and 9 cells then stay in the first
// cache while they pass over the places.
#include <cstring>

#include "tiles.h"

namespace {

using rcnn::Convolution;
using rcnn::ConvolutionPiece;
using rcnn::ConvolutionWeights;

constexpr int64_t CELLS = 9, BLOCK = 32, PANEL = 32, DEPTH = 32;  // places of a block, outputs of a panel, channels
constexpr int64_t SUMS = 4 * TILE, WEIGHTS = CELLS * 2 * TILE;    // bytes, of a block and a panel
constexpr int64_t PLACE = DEPTH * 2;                              // bytes, of a place
constexpr int64_t BATCH = 128;                                    // places of a stem, computed together

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

struct Cell {
  int64_t row, column, index;  // of places; of its first channel
};

struct Piece {
  const Convolution& conv;
  const ConvolutionPiece part;
  const int64_t line, halo, blocks, span;  // places of a line, around, in blocks, with those around
  char *inputs, *sums, *lines;

  Piece(const Convolution& of, const ConvolutionPiece& piece, char* scratch)
      : conv(of), part(piece), line(of.line()), halo(of.halo()), blocks((piece.count + BLOCK - 1) / BLOCK),
        span(blocks * BLOCK + 2 * halo), inputs(scratch), sums(scratch + span * conv.shape.channels * 2), lines(sums + blocks * SUMS) {}

  // Where a row of places begins in the inputs; negative: it lies between images or outside of them.
  int64_t start_of(int64_t row) const {
    const int64_t image = row / conv.rows(), y = row % conv.rows();
    const bool inside = row >= 0 && image < conv.images && y < conv.shape.height;
    return inside ? (image * conv.shape.height + y) * conv.shape.width * conv.shape.channels : -1;
  }

  void pack() const {
    const int64_t first = part.first - halo;
    int64_t row = (first + 2 * line) / line - 2, column = first - row * line;  // halo <= 2 * line
    for (int64_t k = 0; k < span; ++row, column = 0) {
      const int64_t start = start_of(row), end = least(span, k + line - column);
      const int64_t inside = start < 0 ? k : least(end, k + conv.shape.width - column);
      if (k < inside) (conv.spread ? spread : conv.positive ? mask : conv.inputs ? copy : begin)(*this, {row, column, start + column * conv.shape.channels}, k, inside);
      for (k = k < inside ? inside : k; k < end; ++k)
        for (int64_t c = 0; c < conv.shape.channels; c += DEPTH) write(place(c, k), _mm512_setzero_si512());
    }
  }

  char* place(int64_t channel, int64_t k) const { return inputs + (channel / DEPTH * span + k) * PLACE; }

  static void copy(const Piece& to, Cell cell, int64_t k, int64_t end) {
    const int64_t channels = to.conv.shape.channels;
    int64_t at = cell.index;
    for (; k < end; ++k, at += channels)
      for (int64_t c = 0; c < channels; c += DEPTH) write(to.place(c, k), _mm512_loadu_si512(to.conv.inputs + at + c));
  }

  // Of each place one piece stores what the mask leaves: of the pieces around it, too, it is among the inputs.
  static void mask(const Piece& to, Cell cell, int64_t k, int64_t end) {
    const int64_t channels = to.conv.shape.channels;
    int64_t at = cell.index;
    for (; k < end; ++k, at += channels) {
      const bool own = k >= to.halo && k < to.halo + to.part.count && to.part.panel == 0;
      for (int64_t c = 0; c < channels; c += DEPTH) {
        const __m512i of = _mm512_loadu_si512(to.conv.positive + at + c);
        const __mmask32 kept = _mm512_cmpgt_epi16_mask(of, _mm512_setzero_si512());
        const __m512i left = _mm512_maskz_mov_epi16(kept, _mm512_loadu_si512(to.conv.inputs + at + c));
        write(to.place(c, k), left);
        if (own) store_past_caches(to.conv.masked + at + c, left);
      }
    }
  }

  // What the stem makes of a picture: each place's 27 values are a row of a tile, which is multiplied by its weights once.
  static void begin(const Piece& to, Cell cell, int64_t k, int64_t end) {
    const int64_t image = cell.row / to.conv.rows(), y = cell.row % to.conv.rows();
    for (int64_t i = 0; i < 3; ++i) to.read_line(image, y + i - 1, to.lines + i * to.conv.picture_line());
    for (int64_t x = cell.column; k < end; k += BATCH, x += BATCH) to.compute_batch(x, k, least(BATCH, end - k));
  }

  void read_line(int64_t image, int64_t y, char* to) const {
    const int64_t bytes = 2 * 3 * conv.shape.width;
    std::memset(to, 0, conv.picture_line());
    if (y >= 0 && y < conv.shape.height)
      std::memcpy(to + 6, conv.stem.pictures + (image * conv.shape.height + y) * 3 * conv.shape.width, bytes);
  }

  void compute_batch(int64_t x, int64_t k, int64_t count) const {
    alignas(64) char values[BATCH * LINE], results[BATCH / BLOCK * SUMS];
    for (int64_t i = 0; i < count; ++i) write(values + i * LINE, values_around(x + i));
    finish_writing(values);
    for (int64_t c = 0; c < conv.shape.channels; c += DEPTH) {
      const char* weights = reinterpret_cast<const char*>(conv.stem.weights + c * DEPTH);
      for (int64_t i = 0; i < count; i += BLOCK) {
        zero_sums();
        load_factors(values + i * LINE, TILE, weights, TILE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        store_sums(results + i / BLOCK * SUMS);
      }
      finish_writing(results);
      round_batch(results, c, k, count);
    }
  }

  // Of three rows nine values, and zeros.
  __m512i values_around(int64_t x) const {
    alignas(64) static constexpr uint16_t ORDER[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  16, 17, 18, 19, 20, 21, 22,
                                                       23, 24, 32, 33, 34, 35, 36, 37, 38, 39, 40, 0,  0,  0,  0,  0};
    const char* from = lines + x * 6;
    const __m512i two = _mm512_inserti64x4(_mm512_castsi256_si512(half_line(from)), half_line(from + conv.picture_line()), 1);
    const __m512i third = _mm512_castsi256_si512(half_line(from + 2 * conv.picture_line()));
    return _mm512_maskz_permutex2var_epi16((1u << 27) - 1, two, _mm512_load_si512(ORDER), third);
  }

  static __m256i half_line(const char* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

  void round_batch(const char* results, int64_t c, int64_t k, int64_t count) const {
    const __m512 zero = _mm512_setzero_ps();
    const __m512 low = _mm512_loadu_ps(conv.stem.bias + c), high = _mm512_loadu_ps(conv.stem.bias + c + 16);
    for (int64_t i = 0; i < count; ++i) {
      const char* from = results + i / 16 * 2 * TILE + i % 16 * LINE;
      const __m512 one = _mm512_max_ps(zero, _mm512_add_ps(low, _mm512_load_ps(from)));
      const __m512 other = _mm512_max_ps(zero, _mm512_add_ps(high, _mm512_load_ps(from + TILE)));
      write(place(c, k + i), (__m512i)_mm512_cvtne2ps_pbh(other, one));
    }
  }

  // Of a pooled gradient, at the cells that were the largest and positive.
  static void spread(const Piece& to, Cell cell, int64_t k, int64_t end) {
    const Convolution& conv = to.conv;
    const int64_t channels = conv.shape.channels, height = conv.shape.height / 2, width = conv.shape.width / 2;
    const int64_t image = cell.row / conv.rows(), y = cell.row % conv.rows();
    int64_t index = cell.index;
    for (int64_t x = cell.column; k < end; ++k, ++x, index += channels) {
      const bool own = k >= to.halo && k < to.halo + to.part.count && to.part.panel == 0;
      const bool inside = y / 2 < height && x / 2 < width;
      const int64_t at = ((image * height + y / 2) * width + x / 2) * channels;
      const __m256i here = _mm256_set1_epi8(char(y % 2 * 2 + x % 2));
      for (int64_t c = 0; c < channels; c += DEPTH) {
        __m512i left = _mm512_setzero_si512();
        if (inside) {
          const __m512i of = _mm512_loadu_si512(conv.positive + at + c);
          const __m256i chosen = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(conv.spread + at + c));
          const __mmask32 kept = _mm512_cmpgt_epi16_mask(of, _mm512_setzero_si512()) & _mm256_cmpeq_epi8_mask(chosen, here);
          left = _mm512_maskz_mov_epi16(kept, _mm512_loadu_si512(conv.inputs + at + c));
        }
        write(to.place(c, k), left);
        if (own) store_past_caches(conv.masked + index + c, left);
      }
    }
  }

  static void store_past_caches(bfloat16* to, __m512i values) {
    if (reinterpret_cast<uintptr_t>(to) % LINE == 0)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), values);
    else
      _mm512_storeu_si512(to, values);
  }

  // The block that comes after one: the next below it, which shares two of three lines with it, or a column's first.
  int64_t after(int64_t block) const {
    const int64_t below = line < BLOCK ? 1 : (line + BLOCK / 2) / BLOCK;
    const int64_t column = block % below + 1;
    return block + below < blocks ? block + below : column < below && column < blocks ? column : 0;
  }

  // The products of 32 channels and a panel of weights, added to the sums of all blocks. A block's factors and sums are
  // fetched during the block before it, and weights on their way from memory into the second cache all the time.
  void add_products(const char* of_inputs, const char* weights, bool first) const {
    int64_t shifts[CELLS + 1] = {};
    for (int64_t cell = 0; cell < CELLS; ++cell) shifts[cell] = (cell / 3 * line + cell % 3) * PLACE;
    const int64_t lines = (WEIGHTS / LINE + blocks * CELLS - 1) / (blocks * CELLS);  // of weights, fetched in a step
    const char* fetched = weights + WEIGHTS;
    load_factors(of_inputs, TILE, weights, TILE);
    first ? zero_sums() : load_sums(sums);
    int64_t block = 0;
    for (int64_t k = 0; k < blocks; ++k) {
      const int64_t next = after(block);
      const char *here = of_inputs + block * BLOCK * PLACE, *ahead = sums + next * SUMS;
      for (int64_t cell = 1; cell < CELLS; ++cell, ahead += SUMS / (CELLS - 1)) {
        for (int64_t i = 0; i < lines; ++i, fetched += LINE) fetch(fetched);
        for (int64_t i = 0; i < SUMS / (CELLS - 1); i += LINE) fetch_near(ahead + i);
        multiply_and_load(here + shifts[cell], TILE, weights + cell * 2 * TILE, TILE);
      }
      multiply_and_load(of_inputs + next * BLOCK * PLACE, TILE, weights, TILE);
      if (first)
        store_sums(sums + block * SUMS), zero_sums();
      else
        exchange_sums(sums + block * SUMS, sums + next * SUMS);
      block = next;
    }
  }

  void compute() const {
    configure();
    pack();
    for (int64_t panel = part.panel; panel < part.panel + part.panels; ++panel) {
      const char* weights = reinterpret_cast<const char*>(conv.weights) + panel * conv.shape.channels / DEPTH * WEIGHTS;
      finish_writing(inputs);
      for (int64_t c = 0; c < conv.shape.channels / DEPTH; ++c)
        add_products(inputs + c * span * PLACE, weights + c * WEIGHTS, c == 0);
      finish_writing(sums);
      conv.pool ? store_pooled(panel * PANEL) : store(panel * PANEL);
    }
    _tile_release();
    _mm_sfence();  // after what went past the caches
  }

  __m512 sums_of(int64_t place, int64_t half) const {
    return _mm512_load_ps(sums + place / 16 * 2 * TILE + half * TILE + place % 16 * LINE);
  }

  __m512 bias_of(int64_t output) const {
    return conv.bias ? _mm512_loadu_ps(conv.bias + output) : _mm512_setzero_ps();
  }

  void round_to(int64_t index, __m512 low, __m512 high) const {
    if (conv.add) {
      low = _mm512_add_ps(low, widened(conv.add + index));
      high = _mm512_add_ps(high, widened(conv.add + index + 16));
    }
    if (conv.relu) {  // of a NaN the second, so it stays
      low = _mm512_max_ps(_mm512_setzero_ps(), low);
      high = _mm512_max_ps(_mm512_setzero_ps(), high);
    }
    _mm512_storeu_si512(conv.maps + index, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }

  static __m512 widened(const bfloat16* from) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))), 16);
  }

  void store(int64_t output) const {
    const __m512 low = bias_of(output), high = bias_of(output + 16);
    int64_t row = part.first / line, column = part.first % line;
    for (int64_t k = 0; k < part.count; ++row, column = 0) {
      const int64_t end = least(part.count, k + line - column), inside = least(end, k + conv.shape.width - column);
      const int64_t image = row / conv.rows(), y = row % conv.rows();
      int64_t at = ((image * conv.shape.height + y) * conv.shape.width + column) * conv.outputs + output;
      for (; y < conv.shape.height && k < inside; ++k, at += conv.outputs)
        round_to(at, _mm512_add_ps(low, sums_of(k, 0)), _mm512_add_ps(high, sums_of(k, 1)));
      k = end;
    }
  }

  void store_pooled(int64_t output) const {
    const int64_t height = conv.shape.height / 2, width = conv.shape.width / 2;
    for (int64_t k = 0; k + line < part.count; k += 2 * line) {
      const int64_t row = (part.first + k) / line, image = row / conv.rows(), y = row % conv.rows() / 2;
      if (y >= height) continue;
      int64_t at = (image * height + y) * width * conv.outputs + output;
      for (int64_t place = k; conv.chosen && place < k + 2 * width; place += 2, at += conv.outputs)
        round_to(at, choose(place, 0, output, conv.chosen + at), choose(place, 1, output + 16, conv.chosen + at + 16));
      for (int64_t place = k; !conv.chosen && place < k + 2 * width; place += 2, at += conv.outputs)
        round_to(at, _mm512_add_ps(bias_of(output), largest(place, 0)), _mm512_add_ps(bias_of(output + 16), largest(place, 1)));
    }
  }

  // The largest as it will be rounded, so that the first of equal ones is chosen.
  __m512 choose(int64_t place, int64_t half, int64_t output, uint8_t* to) const {
    const __m512 bias = bias_of(output);
    const int64_t places[4] = {place, place + 1, place + line, place + line + 1};
    __m512 best = rounded(_mm512_add_ps(bias, sums_of(place, half)));
    __m512i which = _mm512_setzero_si512();
    for (int i = 1; i < 4; ++i) {
      const __m512 value = rounded(_mm512_add_ps(bias, sums_of(places[i], half)));
      const __mmask16 larger = _mm512_cmp_ps_mask(value, best, _CMP_NLE_UQ) & _mm512_cmp_ps_mask(best, best, _CMP_ORD_Q);
      best = _mm512_mask_mov_ps(best, larger, value);
      which = _mm512_mask_set1_epi32(which, larger, i);
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(which));
    return best;
  }

  static __m512 rounded(__m512 value) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value)), 16);
  }

  __m512 largest(int64_t place, int64_t half) const {
    return larger(larger(sums_of(place, half), sums_of(place + 1, half)),
                  larger(sums_of(place + line, half), sums_of(place + line + 1, half)));
  }

  // A NaN is larger than all.
  static __m512 larger(__m512 a, __m512 b) {
    return _mm512_mask_add_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q), a, b);
  }
};

void convolve(const Convolution& conv, const ConvolutionPiece& part, char* scratch) { Piece(conv, part, scratch).compute(); }

// Two tiles of a cell: of 32 outputs and 32 channels, pairs of channels by outputs.
void pack_cell(const bfloat16* weights, int64_t stride, char* to) {
  for (int half = 0; half < 2; ++half, weights += 16 * stride, to += TILE) {
    __m512i rows[16];
    for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_si512(weights + i * stride);
    transpose(rows);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * LINE, rows[i]);
  }
}

// The same of 32 channels as outputs: what were outputs are pairs.
void pack_cell_transposed(const bfloat16* weights, int64_t stride, char* to) {
  for (int i = 0; i < 16; ++i) {
    const __m512i one = read(weights + 2 * i * stride), other = read(weights + (2 * i + 1) * stride);
    _mm512_storeu_si512(to + i * LINE, _mm512_unpacklo_epi16(one, other));
    _mm512_storeu_si512(to + TILE + i * LINE, _mm512_unpackhi_epi16(one, other));
  }
}

// Of 32 outputs, whose weights lie together: they are read in the order of memory.
void pack(const ConvolutionWeights& of, int64_t panel) {
  const int64_t stride = CELLS * of.channels, others = of.channels / DEPTH;
  for (int64_t cell = 0; cell < CELLS; ++cell)
    for (int64_t c = 0; c < others; ++c) {
      const bfloat16* from = of.weights + panel * PANEL * stride + cell * of.channels + c * DEPTH;
      const int64_t at = of.transposed ? (c * of.outputs / PANEL + panel + 1) * CELLS - 1 - cell
                                       : (panel * others + c) * CELLS + cell;
      char* to = reinterpret_cast<char*>(of.packed) + at * 2 * TILE;
      of.transposed ? pack_cell_transposed(from, stride, to) : pack_cell(from, stride, to);
    }
}

}  // namespace

namespace rcnn {
extern const ConvolutionKernel convolution_amx;
extern const PackConvolution pack_convolution_amx;
const ConvolutionKernel convolution_amx = convolve;
const PackConvolution pack_convolution_amx = pack;
}  // namespace rcnn
