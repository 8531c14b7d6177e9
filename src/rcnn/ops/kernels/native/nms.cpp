// Sorts each problem's boxes by score and hands them to the kernel.
#include <algorithm>
#include <cstring>
#include <vector>

#include "drivers.h"
#include "parallel.h"

namespace rcnn {
namespace {

using Key = uint64_t;  // inverted score in the high half, index in the low half: ascending = best first, ties by index

Key sort_key(float score, uint32_t index) {
  score += 0.f;  // -0 and 0 tie
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return Key(~ascending) << 32 | index;
}

constexpr int DIGIT_BITS = 11;
constexpr int DIGITS = 3;
constexpr int BUCKETS = 1 << DIGIT_BITS;

int digit(Key key, int pass) { return int(key >> (32 + pass * DIGIT_BITS)) & (BUCKETS - 1); }

void radix_sort(std::vector<Key>& keys) {
  std::vector<Key> other(keys.size());
  std::vector<uint32_t> counts(DIGITS * BUCKETS);
  for (Key key : keys)
    for (int pass = 0; pass < DIGITS; ++pass) ++counts[pass * BUCKETS + digit(key, pass)];
  for (int pass = 0; pass < DIGITS; ++pass) {
    uint32_t* count = &counts[pass * BUCKETS];
    if (count[digit(keys[0], pass)] == keys.size()) continue;
    uint32_t total = 0;
    for (int i = 0; i < BUCKETS; ++i) {
      const uint32_t here = count[i];
      count[i] = total;
      total += here;
    }
    for (Key key : keys) other[count[digit(key, pass)]++] = key;
    keys.swap(other);
  }
}

void sort_keys(std::vector<Key>& keys) {
  if (std::is_sorted(keys.begin(), keys.end())) return;
  if (keys.size() < 512)
    std::sort(keys.begin(), keys.end());
  else
    radix_sort(keys);
}

// Memory of one thread, reused from problem to problem.
struct Workspace {
  std::vector<Key> keys;
  std::vector<float> sorted;
  std::vector<int32_t> kept;
  std::vector<NmsChunk> arena;
};

void suppress(const NmsProblem& problem, int64_t image, Workspace& space, int64_t* index, bool* keep_valid) {
  const int64_t first = image * problem.boxes_per_image;
  space.keys.clear();
  for (int64_t i = 0; i < problem.boxes_per_image; ++i) {
    const float score = problem.scores[first + i];
    if (problem.valid[first + i] && score == score) space.keys.push_back(sort_key(score, uint32_t(i)));
  }
  sort_keys(space.keys);
  const int64_t count = int64_t(space.keys.size());
  space.sorted.resize(4 * count);
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(&space.sorted[4 * i], problem.boxes + 4 * (first + uint32_t(space.keys[i])), 4 * sizeof(float));
  const int64_t most = std::min(problem.most, count);
  space.kept.resize(most);
  space.arena.resize(nms_arena_chunks(most));
  const int64_t found = kernels().nms({space.sorted.data(), count}, problem.threshold, problem.offset, most,
                                      space.kept.data(), space.arena.data());
  for (int64_t i = 0; i < problem.most; ++i) {
    keep_valid[i] = i < found;
    index[i] = i < found ? int64_t(uint32_t(space.keys[space.kept[i]])) : 0;
  }
}

}  // namespace

void nms(const NmsProblem& problem, int64_t* index, bool* keep_valid) {
  const int64_t work = problem.images * problem.boxes_per_image;
  const int threads = work < 4096 ? 1 : problem.threads;  // starting a thread costs as much as 2000 boxes
  const int64_t pieces = std::min<int64_t>(problem.images, 4 * threads);
  parallel(pieces, threads, [&](int64_t piece) {
    Workspace space;
    for (int64_t image = piece; image < problem.images; image += pieces)
      suppress(problem, image, space, index + image * problem.most, keep_valid + image * problem.most);
  });
}

}  // namespace rcnn
