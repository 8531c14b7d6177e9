// Divides the products of a large linear layer in training between threads, after what is read often is packed.
#include "large_linear.h"

#include "drivers.h"
#include "parallel.h"

namespace rcnn {
namespace {

#ifdef RCNN_AMX
constexpr int64_t MOST_OUTPUTS = 128, MOST_GROUPS = 4;           // of a piece; more do not stay near the processor
constexpr int64_t GRADIENT_OUTPUTS = 1024, GRADIENT_INPUTS = 64;  // likewise of the weight's gradient

int64_t over(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

// Memory that is not written to, from the start of a page.
class Tiles {
 public:
  explicit Tiles(int64_t bytes) : memory_(new char[bytes + PAGE]) {}
  char* begin() const { return memory_.get() + (-reinterpret_cast<uintptr_t>(memory_.get()) % PAGE); }

 private:
  static constexpr int64_t PAGE = 4096;
  const std::unique_ptr<char[]> memory_;
};
#endif

}  // namespace

void large_linear(const LargeLinear& layer, int threads) {
#ifdef RCNN_AMX
  if (!layer.count || !layer.outputs) return;
  const int64_t chunk_bytes = layer.groups() * LARGE_CHUNK_BYTES, wide = over(layer.outputs, MOST_OUTPUTS);
  const Tiles tiles(layer.chunks() * chunk_bytes);
  parallel(layer.chunks(), threads,
           [&](int64_t chunk) { large_linear_amx.pack(layer, chunk, tiles.begin() + chunk * chunk_bytes); });
  const int64_t groups = std::min(MOST_GROUPS, layer.groups()), outputs = std::min(MOST_OUTPUTS, layer.outputs);
  const int64_t pieces = over(layer.groups(), groups) * wide, bytes = large_linear_sums({0, groups, 0, outputs});
  parallel_with_scratch(pieces, threads, bytes, [&](int64_t piece, char* sums) {
    const int64_t group = piece / wide * groups, output = piece % wide * outputs;
    const LargePiece part{group, std::min(groups, layer.groups() - group), output,
                          std::min(outputs, layer.outputs - output)};
    large_linear_amx.multiply(layer, part, tiles.begin(), sums);
  });
#else
  (void)layer, (void)threads;
#endif
}

void large_gradient(const LargeGradient& layer, int threads) {
#ifdef RCNN_AMX
  const int64_t bytes = layer.width_bytes(), outputs = layer.outputs / LARGE_WIDTH, inputs = layer.inputs / LARGE_WIDTH;
  const Tiles grad(outputs * bytes), x(inputs * bytes);
  parallel(outputs + inputs, threads, [&](int64_t i) {
    if (i < outputs) return large_gradient_amx.pack_grad(layer, i * LARGE_WIDTH, grad.begin() + i * bytes);
    large_gradient_amx.pack_inputs(layer, (i - outputs) * LARGE_WIDTH, x.begin() + (i - outputs) * bytes);
  });
  const int64_t high = over(layer.outputs, GRADIENT_OUTPUTS), across = over(layer.inputs, GRADIENT_INPUTS);
  parallel(high * across, threads, [&](int64_t piece) {
    const int64_t output = piece % high * GRADIENT_OUTPUTS, input = piece / high * GRADIENT_INPUTS;
    const LargeGradientPiece part{output, std::min(GRADIENT_OUTPUTS, layer.outputs - output), input,
                                  std::min(GRADIENT_INPUTS, layer.inputs - input)};
    large_gradient_amx.multiply(layer, part, grad.begin(), x.begin());
  });
#else
  (void)layer, (void)threads;
#endif
}

}  // namespace rcnn
