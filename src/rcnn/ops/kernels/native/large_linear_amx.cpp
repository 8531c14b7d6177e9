// The results of a large linear layer in bfloat16 on AMX's tiles, transposed: the weight's rows are tiles as they lie.
//
// A weight of 200 MB comes from memory once a call, and its coming is what takes the time. 64 rows of x and 256 inputs
// stay in the first cache while 16 outputs after the other pass; the next 256 inputs of these outputs are fetched
// meanwhile, and the next of x. Sums stay in the second cache.
#include "large_linear.h"
#include "tiles.h"

namespace rcnn {
namespace {

constexpr int64_t TILE = 1024, LINE = 64, SIDE = TILE_SIDE, STEP = TILE_DEPTH;
constexpr int64_t STEPS = LARGE_CHUNK / STEP, QUAD = 4 * TILE;  // four tiles side by side: of x, or of sums

// What is multiplied: 16 rows of the weight, tiles of x, and where their sums are.
struct Factors {
  const char *weight, *x;
  char* sums;
};

// What will be wanted: lines of the weight, in runs of STEPS a row, and of x.
struct Ahead {
  const char* weight;
  int64_t stride, line, quarter;  // the next line; how many to fetch after each of four products
  const char* x;

  void fetch_weight() {
    for (const int64_t end = line + quarter; line < end; ++line)
      fetch(weight + line / STEPS * stride + line % STEPS * LINE);
  }
  void fetch_x() {
    for (int64_t i = 0; i < 8; ++i, x += LINE) fetch(x);
  }
};

// One step of one group. The weights are in one tile and come into the other, by turns; intrinsics want them literally.
#define RCNN_STEP(weights, other)             \
  _tile_loadd(other, next.weight, stride);    \
  _tile_dpbf16ps(0, weights, 6);              \
  _tile_loadd(6, rest, LINE);                 \
  ahead.fetch_weight();                       \
  _tile_dpbf16ps(1, weights, 7);              \
  _tile_loadd(7, rest + TILE, LINE);          \
  ahead.fetch_weight();                       \
  _tile_dpbf16ps(2, weights, 6);              \
  _tile_loadd(6, next.x, LINE);               \
  ahead.fetch_weight();                       \
  _tile_dpbf16ps(3, weights, 7);              \
  _tile_loadd(7, next.x + TILE, LINE);        \
  ahead.fetch_weight();                       \
  ahead.fetch_x();

inline void even_step(const Factors& next, int64_t stride, const char* rest, Ahead& ahead) { RCNN_STEP(4, 5) }
inline void odd_step(const Factors& next, int64_t stride, const char* rest, Ahead& ahead) { RCNN_STEP(5, 4) }
#undef RCNN_STEP

void zero() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Adds a chunk's products; `next` are the factors after it, whose sums are zero if `first`.
void add_products(const Factors& now, const Factors& next, int64_t stride, bool first, Ahead& ahead) {
  const char* sums = next.sums;
#pragma GCC unroll 4
  for (int64_t k = 0; k < STEPS; k += 2) {
    for (int64_t i = 0; i < 2 * QUAD / LINE / STEPS; ++i, sums += LINE) fetch_near(sums);
    const char *weight = now.weight + k * LINE, *x = now.x + k * QUAD;
    const Factors one{weight + LINE, x + QUAD, nullptr}, two{weight + 2 * LINE, x + 2 * QUAD, nullptr};
    even_step(one, stride, x + 2 * TILE, ahead);
    odd_step(k + 2 < STEPS ? two : next, stride, x + QUAD + 2 * TILE, ahead);
  }
  _tile_stored(0, now.sums, LINE);
  if (!first) _tile_loadd(0, next.sums, LINE);
  _tile_stored(1, now.sums + TILE, LINE);
  if (!first) _tile_loadd(1, next.sums + TILE, LINE);
  _tile_stored(2, now.sums + 2 * TILE, LINE);
  if (!first) _tile_loadd(2, next.sums + 2 * TILE, LINE);
  _tile_stored(3, now.sums + 3 * TILE, LINE);
  if (!first) _tile_loadd(3, next.sums + 3 * TILE, LINE);
  if (first) zero();
}

struct Work {
  const LargeLinear& layer;
  const LargePiece& piece;
  const char* tiles;
  char* sums;
  const int64_t stride, blocks, turns;  // bytes of a row; 16 outputs each; blocks of all groups

  Work(const LargeLinear& of, const LargePiece& part, const char* packed, char* memory)
      : layer(of), piece(part), tiles(packed), sums(memory), stride(of.inputs * 2), blocks(part.outputs / SIDE),
        turns(blocks * part.groups) {}

  const char* weight_of(int64_t chunk) const {
    return reinterpret_cast<const char*>(layer.weight + piece.output * layer.inputs + chunk * LARGE_CHUNK);
  }
  const char* x_of(int64_t chunk) const {
    return tiles + (chunk * layer.groups() + piece.group) * LARGE_CHUNK_BYTES;
  }
  Factors factors(int64_t chunk, int64_t turn) const {
    const int64_t group = turn / blocks, block = turn % blocks;
    return {weight_of(chunk) + block * SIDE * stride, x_of(chunk) + group * LARGE_CHUNK_BYTES, sums + turn * QUAD};
  }

  void add_all() const {
    const int64_t chunks = layer.chunks(), quarter = (SIDE / 4 + piece.groups - 1) / piece.groups;
    Factors now = factors(0, 0);
    start(now);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t coming = chunk + 1 < chunks ? chunk + 1 : chunk;
      Ahead ahead{weight_of(coming), stride, 0, quarter, x_of(coming)};
      for (int64_t turn = 1; turn <= turns; ++turn) {
        const Factors next = turn < turns ? factors(chunk, turn) : factors(coming, 0);
        add_products(now, next, stride, chunk == 0 && turn < turns, ahead);
        now = next;
      }
    }
  }

  void start(const Factors& now) const {
    _tile_loadd(4, now.weight, stride);
    _tile_loadd(6, now.x, LINE);
    _tile_loadd(7, now.x + TILE, LINE);
    zero();
  }

  void store() const {
    for (int64_t turn = 0; turn < turns; turn += 2)
      for (int64_t tile = 0; tile < 4; ++tile) {
        const int64_t row = ((piece.group + turn / blocks) * 4 + tile) * SIDE;
        store_rows(sums + turn * QUAD + tile * TILE, row, piece.output + turn % blocks * SIDE);
      }
  }

  // Of two tiles of sums, 16 outputs of 16 rows each.
  void store_rows(const char* from, int64_t row, int64_t output) const {
    __m512i low[16], high[16];
    for (int64_t i = 0; i < SIDE; ++i) {
      low[i] = _mm512_load_si512(from + i * LINE);
      high[i] = _mm512_load_si512(from + QUAD + i * LINE);
    }
    transpose(low);
    transpose(high);
    const __m512 bias = widen(layer.bias + output), next_bias = widen(layer.bias + output + SIDE);
    for (int64_t i = 0; i < SIDE && row + i < layer.count; ++i) {
      const __m512 one = _mm512_add_ps((__m512)low[i], bias), other = _mm512_add_ps((__m512)high[i], next_bias);
      _mm512_storeu_si512(layer.out + (row + i) * layer.outputs + output, (__m512i)_mm512_cvtne2ps_pbh(other, one));
    }
  }

  static __m512 widen(const bfloat16* values) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
  }
};

void pack(const LargeLinear& layer, int64_t chunk, char* tiles) {
  for (int64_t tile = 0; tile < 4 * layer.groups(); ++tile)
    for (int64_t k = 0; k < STEPS; ++k) {
      __m512i rows[16];
      for (int64_t i = 0; i < SIDE; ++i) {
        const int64_t row = tile * SIDE + i;
        const bfloat16* from = layer.x + row * layer.inputs + chunk * LARGE_CHUNK + k * STEP;
        rows[i] = row < layer.count ? _mm512_loadu_si512(from) : _mm512_setzero_si512();
      }
      transpose(rows);
      char* to = tiles + tile / 4 * LARGE_CHUNK_BYTES + k * QUAD + tile % 4 * TILE;
      for (int64_t i = 0; i < SIDE; ++i) write(to + i * LINE, rows[i]);
    }
}

void multiply(const LargeLinear& layer, const LargePiece& piece, const char* tiles, char* sums) {
  const Work work(layer, piece, tiles, sums);
  configure();
  finish_writing(tiles);
  work.add_all();
  _tile_release();  // oneDNN's kernels have sizes of their own
  work.store();
}

}  // namespace

extern const LargeLinearKernels large_linear_amx = {pack, multiply};

}  // namespace rcnn
