// Divides the products of a large linear layer in training between threads, after what is read often is packed.
#include "large_linear.h"

#include "drivers.h"
#include "parallel.h"

namespace rcnn {
namespace {

#ifdef RCNN_AMX
constexpr int64_t MOST_OUTPUTS = 128, MOST_GROUPS = 4;           // of a piece; more do not stay near the processor
constexpr int64_t GRADIENT_OUTPUTS = 1024, GRADIENT_INPUTS = 64;  // likewise of the weight's gradient
constexpr int64_t UPDATE_OUTPUTS = 256, UPDATE_BYTES = 800 << 10;  // likewise of an update: bytes of its inputs

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

// Both factors of a gradient, packed.
struct Packed {
  const Tiles grad, x;

  Packed(const LargeGradient& layer, int threads)
      : grad(layer.outputs / LARGE_WIDTH * layer.width_bytes()), x(layer.inputs / LARGE_WIDTH * layer.width_bytes()) {
    const int64_t bytes = layer.width_bytes(), outputs = layer.outputs / LARGE_WIDTH, inputs = layer.inputs / LARGE_WIDTH;
    parallel(outputs + inputs, threads, [&](int64_t i) {
      if (i < outputs) return large_gradient_amx.pack_grad(layer, i * LARGE_WIDTH, grad.begin() + i * bytes);
      large_gradient_amx.pack_inputs(layer, (i - outputs) * LARGE_WIDTH, x.begin() + (i - outputs) * bytes);
    });
  }
};

// In pieces of so many outputs and inputs at most: work(piece, scratch).
template <typename Work>
void in_pieces(const LargeGradient& layer, int64_t outputs, int64_t inputs, int threads, int64_t scratch, const Work& work) {
  const int64_t high = over(layer.outputs, outputs), across = over(layer.inputs, inputs);
  parallel_with_scratch(high * across, threads, scratch, [&](int64_t piece, char* memory) {
    const int64_t output = piece % high * outputs, input = piece / high * inputs;
    work(LargeGradientPiece{output, std::min(outputs, layer.outputs - output), input, std::min(inputs, layer.inputs - input)},
         memory);
  });
}
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
  const Packed packed(layer, threads);
  in_pieces(layer, GRADIENT_OUTPUTS, GRADIENT_INPUTS, threads, 0, [&](const LargeGradientPiece& piece, char*) {
    large_gradient_amx.multiply(layer, piece, packed.grad.begin(), packed.x.begin());
  });
#else
  (void)layer, (void)threads;
#endif
}

void large_update(const LargeUpdate& layer, int threads) {
#ifdef RCNN_AMX
  const LargeGradient& gradient = layer.gradient;
  const Packed packed(gradient, threads);
  const int64_t widths = gradient.inputs / LARGE_WIDTH, most = std::max<int64_t>(UPDATE_BYTES / gradient.width_bytes(), 1);
  const int64_t inputs = over(widths, over(widths, most)) * LARGE_WIDTH;
  in_pieces(gradient, UPDATE_OUTPUTS, inputs, threads, large_update_sums(inputs), [&](const LargeGradientPiece& piece, char* sums) {
    large_update_amx(layer, piece, packed.grad.begin(), packed.x.begin(), sums);
  });
#else
  (void)layer, (void)threads;
#endif
}

}  // namespace rcnn
