// RoIPool on a block of channels of a map; compiled once per instruction set (RCNN_ISA names the table).
#include <cfloat>

#include "vec.h"

namespace {

using namespace rcnn;

inline void store_index(int32_t* p, IntVec v) { std::memcpy(p, &v, sizeof v); }

inline void store_index(int16_t* p, IntVec v) {
  ShortVec narrow = __builtin_convertvector(v, ShortVec);
  std::memcpy(p, &narrow, sizeof narrow);
}

inline IntVec load_index(const int32_t* p) {
  IntVec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline IntVec load_index(const int16_t* p) {
  ShortVec narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  return __builtin_convertvector(narrow, IntVec);
}

inline bool is_empty(Span rows, Span columns) { return rows.hi <= rows.lo || columns.hi <= columns.lo; }

// The largest value of a bin and, if `argmax` wants it, the first cell that holds it, for WIDTH registers of channels
// at once; an empty bin gives 0 and cell -1.
template <int WIDTH, bool WHERE, typename T, typename Index>
inline void pool_bin(const T* map, FeatureShape shape, Span rows, Span columns, T* out, Index* argmax) {
  Vec best[WIDTH];
  IntVec where[WIDTH];
  for (int k = 0; k < WIDTH; ++k) {
    best[k] = splat(is_empty(rows, columns) ? 0.f : -FLT_MAX);
    where[k] = IntVec{} - 1;
  }
  for (int y = rows.lo; y < rows.hi; ++y)
    for (int x = columns.lo; x < columns.hi; ++x) {
      const int32_t cell = int32_t(y * shape.width + x);
      const T* from = map + cell * shape.channels;
      for (int k = 0; k < WIDTH; ++k) {
        Vec value = load(from + k * LANES);
        IntVec larger = value > best[k];
        best[k] = larger ? value : best[k];
        if (WHERE) where[k] = larger ? IntVec{} + cell : where[k];
      }
    }
  for (int k = 0; k < WIDTH; ++k) {
    store(out + k * LANES, best[k]);
    if (WHERE) store_index(argmax + k * LANES, where[k]);
  }
}

template <bool WHERE, typename T, typename Index>
inline void pool_one(const T* map, FeatureShape shape, Span rows, Span columns, T* out, Index* argmax) {
  float best = is_empty(rows, columns) ? 0.f : -FLT_MAX;
  int32_t where = -1;
  for (int y = rows.lo; y < rows.hi; ++y)
    for (int x = columns.lo; x < columns.hi; ++x) {
      const int32_t cell = int32_t(y * shape.width + x);
      float value = load_one(map + cell * shape.channels);
      if (value > best) {
        best = value;
        where = cell;
      }
    }
  store_one(out, best);
  if (WHERE) *argmax = Index(where);
}

template <bool WHERE, typename T, typename Index>
void forward_as(const T* map, FeatureShape shape, RoiBins bins, int64_t channels, T* out, Index* argmax) {
  constexpr int MANY = WHERE ? 4 : 8;  // registers that hide the time a comparison takes
  for (int bin = 0; bin < bins.size * bins.size; ++bin, out += channels, argmax += channels) {
    const Span row = bins.rows[bin / bins.size], column = bins.columns[bin % bins.size];
    int64_t c = 0;
    for (; c + MANY * LANES <= shape.channels; c += MANY * LANES)
      pool_bin<MANY, WHERE>(map + c, shape, row, column, out + c, argmax + c);
    for (; c + LANES <= shape.channels; c += LANES)
      pool_bin<1, WHERE>(map + c, shape, row, column, out + c, argmax + c);
    for (; c < shape.channels; ++c) pool_one<WHERE>(map + c, shape, row, column, out + c, argmax + c);
  }
}

template <typename T>
void forward(const T* map, FeatureShape shape, RoiBins bins, int64_t channels, T* out, Argmax argmax) {
  if (!argmax.cells)
    forward_as<false>(map, shape, bins, channels, out, (int16_t*)nullptr);
  else if (argmax.wide)
    forward_as<true>(map, shape, bins, channels, out, (int32_t*)argmax.cells);
  else
    forward_as<true>(map, shape, bins, channels, out, (int16_t*)argmax.cells);
}

// The next bins' values lie a row of all channels further, where the processor does not foresee the next line.
template <typename T>
inline void prefetch(const T* from, int64_t width) {
  for (int64_t c = 0; c < width; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + c);
}

// Adds each gradient to the cell of its bin that holds the maximum, by asking every cell of the bin: a pass over whole
// registers in the order of memory, where scattering would take each element by itself.
template <int WIDTH, typename T, typename Index>
inline void gather_bin(const T* grad, const Index* argmax, FeatureShape shape, Span rows, Span columns, float* sum) {
  Vec given[WIDTH];
  IntVec where[WIDTH];
  for (int k = 0; k < WIDTH; ++k) {
    given[k] = load(grad + k * LANES);
    where[k] = load_index(argmax + k * LANES);
  }
  for (int y = rows.lo; y < rows.hi; ++y)
    for (int x = columns.lo; x < columns.hi; ++x) {
      const int32_t cell = int32_t(y * shape.width + x);
      float* to = sum + cell * shape.channels;
      for (int k = 0; k < WIDTH; ++k) {
        Vec old = load(to + k * LANES);
        store(to + k * LANES, where[k] == IntVec{} + cell ? old + given[k] : old);
      }
    }
}

template <typename T, typename Index>
inline void scatter_bin(const T* grad, const Index* argmax, int64_t channels, int64_t first, int64_t last,
                        float* sum) {
  for (int64_t c = first; c < last; ++c)
    if (argmax[c] >= 0) sum[argmax[c] * channels + c] += load_one(grad + c);
}

constexpr int AHEAD = 8;          // bins
constexpr int MOST_GATHERED = 96;  // cells of a bin from which on scattering is faster

template <typename T, typename Index>
void backward_as(const T* grad, const Index* argmax, FeatureShape shape, RoiBins bins, int64_t channels, float* sum) {
  constexpr int MANY = 4;
  for (int bin = 0; bin < bins.size * bins.size; ++bin, grad += channels, argmax += channels) {
    const Span row = bins.rows[bin / bins.size], column = bins.columns[bin % bins.size];
    prefetch(grad + AHEAD * channels, shape.channels);
    prefetch(argmax + AHEAD * channels, shape.channels);
    int64_t c = 0;
    if ((row.hi - row.lo) * (column.hi - column.lo) < MOST_GATHERED) {
      for (; c + MANY * LANES <= shape.channels; c += MANY * LANES)
        gather_bin<MANY>(grad + c, argmax + c, shape, row, column, sum + c);
      for (; c + LANES <= shape.channels; c += LANES)
        gather_bin<1>(grad + c, argmax + c, shape, row, column, sum + c);
    }
    scatter_bin(grad, argmax, shape.channels, c, shape.channels, sum);
  }
}

template <typename T>
void backward(const T* grad, Argmax argmax, FeatureShape shape, RoiBins bins, int64_t channels, float* sum) {
  if (argmax.wide)
    backward_as(grad, (const int32_t*)argmax.cells, shape, bins, channels, sum);
  else
    backward_as(grad, (const int16_t*)argmax.cells, shape, bins, channels, sum);
}

}  // namespace

namespace rcnn::RCNN_ISA {
extern const RoiPoolKernels<float> roi_pool_float;
extern const RoiPoolKernels<bfloat16> roi_pool_bfloat16;
const RoiPoolKernels<float> roi_pool_float = {forward<float>, backward<float>};
const RoiPoolKernels<bfloat16> roi_pool_bfloat16 = {forward<bfloat16>, backward<bfloat16>};
}  // namespace rcnn::RCNN_ISA
