// Runs independent pieces of work on a few threads. A forked process, which has none of its parent's, may ask for one
// thread only, as of PyTorch's own operators.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace rcnn {

// libgomp's GOMP_parallel(function, data, threads, flags): calls function(data) on a team of threads and waits.
using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);

// PyTorch's team, if it was lent (bindings.cpp): its threads are awake and on cores of their own, where new ones start
// milliseconds late, or share a core with one of PyTorch's that waits for more work. Null: new threads every time.
inline std::atomic<Team> team{nullptr};

// Calls work(piece) for every piece in [0, pieces), in no particular order, on at most `threads` threads.
template <typename Work>
void parallel(int64_t pieces, int threads, const Work& work) {
  std::atomic<int64_t> next{0};
  auto drain = [&] {
    for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) work(piece);
  };
  const int64_t wanted = std::min<int64_t>(threads, pieces);
  if (wanted <= 1) return drain();
  if (const Team run = team) {
    run([](void* data) { (*static_cast<decltype(drain)*>(data))(); }, &drain, unsigned(wanted), 0);
    return;
  }
  std::vector<std::thread> others;
  for (int64_t i = 1; i < wanted; ++i) others.emplace_back(drain);
  drain();
  for (auto& thread : others) thread.join();
}

// The same for work(piece, scratch): each thread has that many bytes of its own, from the start of a line of the cache.
template <typename Work>
void parallel_with_scratch(int64_t pieces, int threads, int64_t bytes, const Work& work) {
  constexpr int64_t LINE = 64;
  const int64_t each = (bytes + LINE - 1) / LINE * LINE, workers = std::min<int64_t>(threads, pieces);
  if (workers <= 0) return;
  const std::unique_ptr<char[]> memory(new char[workers * each + LINE]);  // not written to, so not touched
  char* scratch = memory.get() + (-reinterpret_cast<uintptr_t>(memory.get()) % LINE);
  std::atomic<int64_t> next{0};
  parallel(workers, int(workers), [&](int64_t worker) {
    for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;)
      work(piece, scratch + worker * each);
  });
}

}  // namespace rcnn
