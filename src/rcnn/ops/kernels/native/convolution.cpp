// Divides a convolution between threads, in pieces whose inputs and sums stay near the processor.
#include "drivers.h"
#include "parallel.h"

namespace rcnn {
namespace {

constexpr int64_t CACHE = 1280 << 10;  // bytes of a piece's inputs and sums: of a cache of 2 MiB, which weights pass
constexpr int64_t FEWEST = 256;        // places, in which a panel of weights is worth its way
constexpr int64_t PANEL = 32, BLOCK = 32;

int64_t over(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

// How many places a piece has: few enough for the cache, and so that all threads have as many of them.
int64_t places_of_piece(const Convolution& conv, int threads) {
  const int64_t unit = conv.pool ? 2 * conv.line() : BLOCK, all = conv.places();
  const int64_t halo = 4 * conv.halo() * conv.shape.channels, each = 2 * conv.shape.channels + 4 * PANEL;
  const int64_t most = std::max((CACHE - halo) / each, FEWEST);
  const int64_t pieces = over(all, std::min(most, std::max(over(all, threads), FEWEST)));
  const int64_t even = pieces > threads ? over(pieces, threads) * threads : pieces;
  return over(over(all, even), unit) * unit;
}

}  // namespace

void convolution(const Convolution& conv, int threads) {
#ifdef RCNN_AMX
  if (conv.places() <= 0 || !conv.outputs) return;
  const int64_t places = places_of_piece(conv, threads), pieces = over(conv.places(), places);
  const int64_t panels = conv.outputs / PANEL, each = over(panels, std::min(panels, over(threads, pieces)));
  const int64_t groups = over(panels, each);
  parallel_with_scratch(pieces * groups, threads, convolution_scratch(conv, places), [&](int64_t piece, char* scratch) {
    const int64_t first = piece / groups * places, panel = piece % groups * each;
    convolution_amx(conv, {first, std::min(places, conv.places() - first), panel, std::min(each, panels - panel)},
                    scratch);
  });
#else
  (void)conv, (void)threads;
#endif
}

void pack_convolution(const ConvolutionWeights& weights, int threads) {
#ifdef RCNN_AMX
  parallel(weights.outputs / PANEL, threads, [&](int64_t panel) { pack_convolution_amx(weights, panel); });
#else
  (void)weights, (void)threads;
#endif
}

}  // namespace rcnn
