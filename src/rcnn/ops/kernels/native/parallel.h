// Runs independent pieces of work on a few threads. No pool: data-loading processes may fork at any time.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace rcnn {

// Calls work(piece) for every piece in [0, pieces), in no particular order, on at most `threads` threads.
template <typename Work>
void parallel(int64_t pieces, int threads, const Work& work) {
  std::atomic<int64_t> next{0};
  auto drain = [&] {
    for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) work(piece);
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < std::min<int64_t>(threads, pieces); ++i) others.emplace_back(drain);
  drain();
  for (auto& thread : others) thread.join();
}

}  // namespace rcnn
