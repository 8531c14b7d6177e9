// Divides the weight of a convolution between threads: each sums all places for its outputs and channels.
#include "drivers.h"
#include "parallel.h"

namespace rcnn {
namespace {

constexpr int64_t MOST_OUTPUTS = 256, MOST_CHANNELS = 128;  // of a piece, whose sums take half of a cache of 2 MiB
constexpr int64_t FEWEST = 2 * TILE_SIDE;

int64_t pieces_of(int64_t count, int64_t most) { return (count + most - 1) / most; }

}  // namespace

void weight_gradient(const ConvGradient& conv, int threads) {
#ifdef RCNN_AMX
  int64_t outputs = std::min(MOST_OUTPUTS, conv.outputs);
  const int64_t channels = std::min(MOST_CHANNELS, conv.shape.channels);
  const int64_t across = pieces_of(conv.shape.channels, MOST_CHANNELS);
  while (outputs % (2 * FEWEST) == 0 && pieces_of(conv.outputs, outputs) * across < threads) outputs /= 2;
  const int64_t pieces = pieces_of(conv.outputs, outputs) * across;
  parallel_with_scratch(pieces, threads, weight_gradient_scratch(conv, outputs, channels), [&](int64_t piece, char* scratch) {
    const int64_t output = piece / across * outputs, channel = piece % across * MOST_CHANNELS;
    const ConvPiece part{output, std::min(outputs, conv.outputs - output), channel,
                         std::min(channels, conv.shape.channels - channel)};
    weight_gradient_amx(conv, part, scratch);
  });
#else
  (void)conv, (void)threads;
#endif
}

}  // namespace rcnn
