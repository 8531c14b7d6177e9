// Greedy non-maximum suppression of sorted boxes; compiled once per instruction set, without contracting a * b + c:
// the overlaps must round as the reference's do.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "vec.h"

namespace {

using namespace rcnn;

struct Box {
  float x1, y1, x2, y2, area;
};

// The kept boxes, by the cell of a grid in which their centres lie.
struct Grid {
  NmsChunk* chunks;
  int32_t made;
  int32_t side;
  float left, top, per_x, per_y;
  int32_t head[NMS_GRID * NMS_GRID];
};

inline float positive(float x) { return x < 0 ? 0 : x; }  // a NaN stays

inline Box read_box(const float* p, float offset) {
  return {p[0], p[1], p[2], p[3], positive(p[2] - p[0] + offset) * positive(p[3] - p[1] + offset)};
}

inline int clamp_cell(float x, int side) {
  if (!(x > 0)) return 0;  // also NaN
  return x < float(side) ? int(x) : side - 1;
}

inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

inline bool any(IntVec v) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)v) != 0;
#elif defined(__AVX__)
  return _mm256_movemask_ps((__m256)v) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)v) != 0;
#else
  int32_t found = 0;
  for (int i = 0; i < LANES; ++i) found |= v[i];
  return found != 0;
#endif
}

inline bool overlaps(const NmsChunk& chunk, const Box& box, float threshold, float offset) {
  IntVec hit = {};
  for (int i = 0; i < NMS_LANES; i += LANES) {
    Vec width = smaller(load(chunk.x2 + i), splat(box.x2)) - larger(load(chunk.x1 + i), splat(box.x1)) + offset;
    Vec height = smaller(load(chunk.y2 + i), splat(box.y2)) - larger(load(chunk.y1 + i), splat(box.y1)) + offset;
    Vec shared = larger(width, Vec{}) * larger(height, Vec{});
    Vec joined = larger(splat(1e-9f), load(chunk.area + i) + box.area - shared);  // a NaN stays
    hit |= (IntVec)(shared / joined > threshold);
  }
  return any(hit);
}

inline float magnitude(float x) { return x < 0 ? -x : x; }

struct CellRange {
  int x_lo, x_hi, y_lo, y_hi;
};

// An overlap above t puts the centres within (1 - t) / (2 t) widths of each other, because on either axis
// t < IoU <= shared / joined length, and the centres are at most half of joined - shared apart.
inline CellRange reachable(const Grid& grid, const Box& box, float reach, float offset) {
  const float x = (box.x1 + box.x2) * .5f, y = (box.y1 + box.y2) * .5f;
  const float dx = reach * (box.x2 - box.x1 + offset) + 1e-6f * magnitude(x);  // the last term: rounding far from 0
  const float dy = reach * (box.y2 - box.y1 + offset) + 1e-6f * magnitude(y);
  if (!(dx + dy < 1e30f)) return {0, grid.side - 1, 0, grid.side - 1};
  const float left = x - dx - grid.left, right = x + dx - grid.left, top = y - dy - grid.top, low = y + dy - grid.top;
  return {clamp_cell(left * grid.per_x, grid.side), clamp_cell(right * grid.per_x, grid.side),
          clamp_cell(top * grid.per_y, grid.side), clamp_cell(low * grid.per_y, grid.side)};
}

inline bool suppressed(const Grid& grid, const Box& box, CellRange range, float threshold, float offset) {
  for (int y = range.y_lo; y <= range.y_hi; ++y)
    for (int x = range.x_lo; x <= range.x_hi; ++x)
      for (int32_t c = grid.head[y * grid.side + x]; c >= 0; c = grid.chunks[c].next)
        if (overlaps(grid.chunks[c], box, threshold, offset)) return true;
  return false;
}

inline int32_t fresh_chunk(Grid& grid, int32_t next) {
  NmsChunk& chunk = grid.chunks[grid.made];
  for (int i = 0; i < NMS_LANES; ++i) {
    chunk.x1[i] = chunk.y1[i] = 1e30f;
    chunk.x2[i] = chunk.y2[i] = -1e30f;
    chunk.area[i] = 0;
  }
  chunk.next = next;
  chunk.used = 0;
  return grid.made++;
}

inline void keep(Grid& grid, const Box& box) {
  const int x = clamp_cell(((box.x1 + box.x2) * .5f - grid.left) * grid.per_x, grid.side);
  const int y = clamp_cell(((box.y1 + box.y2) * .5f - grid.top) * grid.per_y, grid.side);
  int32_t& head = grid.head[y * grid.side + x];
  if (head < 0 || grid.chunks[head].used == NMS_LANES) head = fresh_chunk(grid, head);
  NmsChunk& chunk = grid.chunks[head];
  const int at = chunk.used++;
  chunk.x1[at] = box.x1;
  chunk.y1[at] = box.y1;
  chunk.x2[at] = box.x2;
  chunk.y2[at] = box.y2;
  chunk.area[at] = box.area;
}

inline float cells_per_pixel(float low, float high, int side) {
  const float length = high - low;
  return length > 1e-6f && length < 1e30f ? side / length : 0;
}

inline void lay_out(Grid& grid, SortedBoxes sorted) {
  float left = 1e30f, right = -1e30f, top = 1e30f, bottom = -1e30f;
  for (int64_t i = 0; i < sorted.count; ++i) {
    const float* p = sorted.boxes + 4 * i;
    const float x = (p[0] + p[2]) * .5f, y = (p[1] + p[3]) * .5f;
    left = x < left ? x : left;
    right = x > right ? x : right;
    top = y < top ? y : top;
    bottom = y > bottom ? y : bottom;
  }
  grid.made = 0;
  grid.side = sorted.count <= 256 ? 1 : sorted.count <= 2048 ? NMS_GRID / 2 : NMS_GRID;
  grid.left = left;
  grid.top = top;
  grid.per_x = cells_per_pixel(left, right, grid.side);
  grid.per_y = cells_per_pixel(top, bottom, grid.side);
  for (int i = 0; i < grid.side * grid.side; ++i) grid.head[i] = -1;
}

int64_t nms(SortedBoxes sorted, float threshold, float offset, int64_t most, int32_t* kept, void* arena) {
  Grid grid;
  grid.chunks = static_cast<NmsChunk*>(arena);
  lay_out(grid, sorted);
  // 1e-3 more than the exact reach, for rounding.
  const float reach = threshold > 1e-3f ? (1 - threshold) / (2 * threshold) + 1e-3f : 1e30f;
  int64_t count = 0;
  for (int64_t i = 0; i < sorted.count && count < most; ++i) {
    const Box box = read_box(sorted.boxes + 4 * i, offset);
    if (suppressed(grid, box, reachable(grid, box, reach, offset), threshold, offset)) continue;
    keep(grid, box);
    kept[count++] = int32_t(i);
  }
  return count;
}

}  // namespace

namespace rcnn::RCNN_ISA {
extern int64_t (*const nms_kernel)(SortedBoxes, float, float, int64_t, int32_t*, void*);
int64_t (*const nms_kernel)(SortedBoxes, float, float, int64_t, int32_t*, void*) = nms;
}  // namespace rcnn::RCNN_ISA
