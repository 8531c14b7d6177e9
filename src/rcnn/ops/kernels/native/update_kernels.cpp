// One pass of SGD over a weight; compiled once per instruction set (RCNN_ISA names the table).
#include "vec.h"

namespace {

using namespace rcnn;

constexpr int64_t AHEAD = 512;  // elements that memory is asked for before they are needed

// The mean of the parts of a gradient, in their order.
template <typename Grad>
inline Vec mean(const Grad* const* grads, int parts, int64_t i) {
  Vec sum = load(grads[0] + i);
  for (int part = 1; part < parts; ++part) sum += load(grads[part] + i);
  return parts == 1 ? sum : sum * (1.0f / float(parts));
}

template <typename Grad>
inline float mean_one(const Grad* const* grads, int parts, int64_t i) {
  float sum = load_one(grads[0] + i);
  for (int part = 1; part < parts; ++part) sum += load_one(grads[part] + i);
  return parts == 1 ? sum : sum * (1.0f / float(parts));
}

inline Vec updated(const Update& u, Vec g, const float* weight, float* momentum) {
  Vec w = load(weight);
  if (u.clip > 0) {
    g = g > u.clip ? splat(u.clip) : g;
    g = g < -u.clip ? splat(-u.clip) : g;
  }
  Vec step = u.momentum * load(momentum) + (g + u.decay * w);
  store(momentum, step);
  return w - u.lr * step;
}

template <typename Grad>
void update(const Update& u, const Grad* const* grads, int parts, float* weight, float* momentum, bfloat16* low,
            int64_t begin, int64_t end) {
  int64_t i = begin;
  const bool whole = reinterpret_cast<uintptr_t>(low + begin) % sizeof(HalfVec) == 0;
  for (; i + LANES <= end; i += LANES) {
    for (int part = 0; part < parts; ++part) __builtin_prefetch(grads[part] + i + AHEAD);
    __builtin_prefetch(weight + i + AHEAD);
    __builtin_prefetch(momentum + i + AHEAD);
    const Vec w = updated(u, mean(grads, parts, i), weight + i, momentum + i);
    store(weight + i, w);
    if (low && whole)
      store_past_caches(low + i, w);
    else if (low)
      store(low + i, w);
  }
  past_caches_is_done();
  for (; i < end; ++i) {
    float g = mean_one(grads, parts, i);
    if (u.clip > 0) g = g > u.clip ? u.clip : g < -u.clip ? -u.clip : g;
    momentum[i] = u.momentum * momentum[i] + (g + u.decay * weight[i]);
    weight[i] -= u.lr * momentum[i];
    if (low) store_one(low + i, weight[i]);
  }
}

// A number is not finite where all bits of its exponent are set.
template <typename Bits>
bool finite(const Bits* from, int64_t count, Bits exponent) {
  Bits wrong = 0;
  for (int64_t i = 0; i < count; ++i) wrong |= Bits((from[i] & exponent) == exponent);
  return !wrong;
}

bool finite_float(const float* from, int64_t count) {
  return finite(reinterpret_cast<const uint32_t*>(from), count, uint32_t(0x7f800000));
}

bool finite_bfloat16(const bfloat16* from, int64_t count) {
  return finite(reinterpret_cast<const uint16_t*>(from), count, uint16_t(0x7f80));
}

void round_to(const float* from, bfloat16* to, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
  for (; i < count; ++i) store_one(to + i, from[i]);
}

}  // namespace

namespace rcnn::RCNN_ISA {
extern const UpdateKernels update_kernels;
const UpdateKernels update_kernels = {update<float>, update<bfloat16>, finite_float, finite_bfloat16, round_to};
}  // namespace rcnn::RCNN_ISA
