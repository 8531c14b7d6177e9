// Divides the tiles of Winograd's convolution between threads, in blocks whose sums stay near the processor.
#include "drivers.h"
#include "parallel.h"

namespace rcnn {
namespace {

constexpr int64_t MOST_TILES = 48;  // a block's; of 12 to 240 none is better for all layers of VGG16
constexpr int64_t ALIGNMENT = 64 / sizeof(float);

int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Tiles of a block: as equal for all threads as whole groups allow.
int64_t block_of(const WinogradLayer& layer, int threads) {
  const int64_t share = (layer.tiles() + threads - 1) / threads, blocks = (share + MOST_TILES - 1) / MOST_TILES;
  return round_up((share + blocks - 1) / blocks, WINOGRAD_GROUP);
}

// Floats that a block of tiles needs, for any instruction set.
int64_t scratch_of(const WinogradLayer& layer, int64_t tiles) {
  const int64_t channels = round_up(layer.shape.channels, ALIGNMENT), outputs = layer.panels() * WINOGRAD_PANEL;
  return 36 * (tiles * (channels + outputs + ALIGNMENT) + 2 * ALIGNMENT) + channels;
}

}  // namespace

void winograd(const WinogradLayer& layer, int threads) {
  const int64_t tiles = layer.tiles();
  if (!tiles || !layer.outputs) return;
  const int64_t block = block_of(layer, threads), bytes = scratch_of(layer, block) * int64_t(sizeof(float));
  parallel_with_scratch((tiles + block - 1) / block, threads, bytes, [&](int64_t piece, char* scratch) {
    kernels().winograd(layer, piece * block, std::min((piece + 1) * block, tiles), reinterpret_cast<float*>(scratch));
  });
}

}  // namespace rcnn
