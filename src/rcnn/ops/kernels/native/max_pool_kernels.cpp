// Max pooling of channels-last maps; compiled once per instruction set (RCNN_ISA names the table).
#include "vec.h"

namespace {

using namespace rcnn;

typedef uint8_t ByteVec __attribute__((vector_size(LANES)));

inline IntVec load_position(const uint8_t* p) {
  ByteVec bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, IntVec);
}

inline void store_position(uint8_t* p, IntVec v) {
  ByteVec bytes = __builtin_convertvector(v, ByteVec);
  std::memcpy(p, &bytes, sizeof bytes);
}

// The places of a window along one axis that lie on the map.
inline Span inside(MaxPool pool, int64_t at, int64_t cells) {
  const int64_t begin = at * pool.stride - pool.padding;
  return {int32_t(begin < 0 ? -begin : 0), int32_t(cells - begin < pool.window ? cells - begin : pool.window)};
}

// The windows along one axis that contain a cell.
inline Span containing(MaxPool pool, int64_t cell, int64_t windows) {
  const int64_t first = cell + pool.padding - pool.window + pool.stride, last = (cell + pool.padding) / pool.stride + 1;
  return {int32_t(first < 0 ? 0 : first / pool.stride), int32_t(last < windows ? last : windows)};
}

// The largest value of a window, or the last that is not a number; `corner` is its first place, on the map or not.
template <int WIDTH, bool WHERE, typename T>
inline void pool_window(const T* corner, FeatureShape shape, MaxPool pool, Span rows, Span columns, T* out,
                        uint8_t* where) {
  Vec best[WIDTH];
  IntVec place[WIDTH];
  for (int k = 0; k < WIDTH; ++k) {
    best[k] = splat(-__builtin_inff());
    place[k] = IntVec{} + (rows.lo * pool.window + columns.lo);
  }
  for (int i = rows.lo; i < rows.hi; ++i)
    for (int j = columns.lo; j < columns.hi; ++j) {
      const T* from = corner + (i * shape.width + j) * shape.channels;
      for (int k = 0; k < WIDTH; ++k) {
        Vec value = load(from + k * LANES);
        IntVec larger = (value > best[k]) | (value != value);
        best[k] = larger ? value : best[k];
        if (WHERE) place[k] = larger ? IntVec{} + (i * pool.window + j) : place[k];
      }
    }
  for (int k = 0; k < WIDTH; ++k) {
    store(out + k * LANES, best[k]);
    if (WHERE) store_position(where + k * LANES, place[k]);
  }
}

template <typename T>
inline void pool_one(const T* corner, FeatureShape shape, MaxPool pool, Span rows, Span columns, T* out,
                     uint8_t* where) {
  float best = -__builtin_inff();
  int place = rows.lo * pool.window + columns.lo;
  for (int i = rows.lo; i < rows.hi; ++i)
    for (int j = columns.lo; j < columns.hi; ++j) {
      const float value = load_one(corner + (i * shape.width + j) * shape.channels);
      if (!(value > best || value != value)) continue;
      best = value;
      place = i * pool.window + j;
    }
  store_one(out, best);
  if (where) *where = uint8_t(place);
}

template <bool WHERE, typename T>
void forward_row(const T* image, FeatureShape shape, MaxPool pool, int64_t y, T* out, uint8_t* where) {
  constexpr int MANY = 4;
  const Span rows = inside(pool, y, shape.height);
  for (int64_t x = 0; x < pool.columns; ++x) {
    const Span columns = inside(pool, x, shape.width);
    const int64_t begin = (y * pool.stride - pool.padding) * shape.width + x * pool.stride - pool.padding;
    for (int64_t c = 0; c < shape.channels;) {
      const T* corner = image + begin * shape.channels + c;
      const int64_t at = x * shape.channels + c, left = shape.channels - c;
      uint8_t* place = WHERE ? where + at : nullptr;
      if (left >= MANY * LANES) {
        pool_window<MANY, WHERE>(corner, shape, pool, rows, columns, out + at, place);
        c += MANY * LANES;
      } else if (left >= LANES) {
        pool_window<1, WHERE>(corner, shape, pool, rows, columns, out + at, place);
        c += LANES;
      } else {
        pool_one(corner, shape, pool, rows, columns, out + at, place);
        c += 1;
      }
    }
  }
}

template <typename T>
void forward(const T* image, FeatureShape shape, MaxPool pool, int64_t y, T* out, uint8_t* where) {
  if (where)
    forward_row<true>(image, shape, pool, y, out, where);
  else
    forward_row<false>(image, shape, pool, y, out, where);
}

// The windows that contain a cell, and which place of the first of them it is.
struct Around {
  Span rows, columns;
  int place, down, right;  // of the first window; how much less it is of the next below and to the right
};

template <int WIDTH, typename T>
inline void gather(const T* grad, const uint8_t* where, int64_t channels, int64_t columns, Around around, T* out) {
  Vec sum[WIDTH] = {};
  for (int64_t i = around.rows.lo, first = around.place; i < around.rows.hi; ++i, first -= around.down)
    for (int64_t j = around.columns.lo, place = first; j < around.columns.hi; ++j, place -= around.right) {
      const int64_t at = (i * columns + j) * channels;
      for (int k = 0; k < WIDTH; ++k) {
        const IntVec own = load_position(where + at + k * LANES) == IntVec{} + int32_t(place);
        sum[k] = own ? sum[k] + load(grad + at + k * LANES) : sum[k];
      }
    }
  for (int k = 0; k < WIDTH; ++k) store(out + k * LANES, sum[k]);
}

template <typename T>
inline void gather_one(const T* grad, const uint8_t* where, int64_t channels, int64_t columns, Around around, T* out) {
  float sum = 0;
  for (int64_t i = around.rows.lo, first = around.place; i < around.rows.hi; ++i, first -= around.down)
    for (int64_t j = around.columns.lo, place = first; j < around.columns.hi; ++j, place -= around.right) {
      const int64_t at = (i * columns + j) * channels;
      if (where[at] == place) sum += load_one(grad + at);
    }
  store_one(out, sum);
}

// A row of the gradient in the map: each cell asks the windows around it, in order, whether it was their largest.
template <typename T>
void backward(const T* grad, const uint8_t* where, FeatureShape shape, MaxPool pool, int64_t y, T* grad_row) {
  constexpr int MANY = 4;
  Around around{containing(pool, y, pool.rows), {0, 0}, 0, pool.stride * pool.window, pool.stride};
  const int64_t row = y + pool.padding - around.rows.lo * pool.stride;
  for (int64_t x = 0; x < shape.width; ++x, grad_row += shape.channels) {
    around.columns = containing(pool, x, pool.columns);
    around.place = int(row * pool.window + x + pool.padding - around.columns.lo * pool.stride);
    int64_t c = 0;
    for (; c + MANY * LANES <= shape.channels; c += MANY * LANES)
      gather<MANY>(grad + c, where + c, shape.channels, pool.columns, around, grad_row + c);
    for (; c + LANES <= shape.channels; c += LANES)
      gather<1>(grad + c, where + c, shape.channels, pool.columns, around, grad_row + c);
    for (; c < shape.channels; ++c)
      gather_one(grad + c, where + c, shape.channels, pool.columns, around, grad_row + c);
  }
}

}  // namespace

namespace rcnn::RCNN_ISA {
extern const MaxPoolKernels<float> max_pool_float;
extern const MaxPoolKernels<bfloat16> max_pool_bfloat16;
const MaxPoolKernels<float> max_pool_float = {forward<float>, backward<float>};
const MaxPoolKernels<bfloat16> max_pool_bfloat16 = {forward<bfloat16>, backward<bfloat16>};
}  // namespace rcnn::RCNN_ISA
