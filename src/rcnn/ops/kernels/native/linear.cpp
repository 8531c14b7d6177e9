// Divides a linear layer between threads, in pieces whose sums stay near the processor.
#include <memory>

#include "drivers.h"
#include "parallel.h"

namespace rcnn {
namespace {

constexpr int64_t MOST_ROWS = 320, MOST_PANELS = 8;  // of a piece
constexpr int64_t ALIGNMENT = 64 / sizeof(float);

int64_t over(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

}  // namespace

void linear(const LinearLayer& layer, int threads) {
#ifdef RCNN_AMX
  if (!layer.count || !layer.outputs) return;
  const int64_t panels = over(layer.outputs, LINEAR_PANEL), groups = over(panels, MOST_PANELS);
  const int64_t chunks = over(layer.count, MOST_ROWS), rows = over(layer.count, chunks), pieces = chunks * groups;
  const int workers = int(std::min<int64_t>(threads, pieces));
  const int64_t each = rows * MOST_PANELS * LINEAR_PANEL;
  const std::unique_ptr<float[]> memory(new float[workers * each + ALIGNMENT]);  // not written to, so not touched
  float* sums = memory.get() + (-(reinterpret_cast<uintptr_t>(memory.get()) / sizeof(float)) % ALIGNMENT);
  std::atomic<int64_t> next{0};
  parallel(workers, workers, [&](int64_t worker) {
    for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
      const int64_t row = piece / groups * rows, panel = piece % groups * MOST_PANELS;
      linear_amx(layer, {row, std::min(rows, layer.count - row), panel, std::min(MOST_PANELS, panels - panel)},
                 sums + worker * each);
    }
  });
#else
  (void)layer, (void)threads;
#endif
}

}  // namespace rcnn
