// Divides a linear layer between threads, in pieces whose sums stay near the processor.
#include "drivers.h"
#include "parallel.h"

namespace rcnn {
namespace {

constexpr int64_t MOST_ROWS = 320, MOST_PANELS = 8;  // of a piece

int64_t over(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

}  // namespace

void linear(const LinearLayer& layer, int threads) {
#ifdef RCNN_AMX
  if (!layer.count || !layer.outputs) return;
  const int64_t panels = over(layer.outputs, LINEAR_PANEL), groups = over(panels, MOST_PANELS);
  const int64_t chunks = over(layer.count, MOST_ROWS), rows = over(layer.count, chunks), pieces = chunks * groups;
  const int64_t bytes = rows * MOST_PANELS * LINEAR_PANEL * int64_t(sizeof(float));
  parallel_with_scratch(pieces, threads, bytes, [&](int64_t piece, char* scratch) {
    const int64_t row = piece / groups * rows, panel = piece % groups * MOST_PANELS;
    linear_amx(layer, {row, std::min(rows, layer.count - row), panel, std::min(MOST_PANELS, panels - panel)},
               reinterpret_cast<float*>(scratch));
  });
#else
  (void)layer, (void)threads;
#endif
}

}  // namespace rcnn
