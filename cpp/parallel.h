// Runs independent items on a pool of threads, the caller among them.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace jax_rnnt {

// Work below this many bytes touched is not worth waking a thread for.
inline constexpr int64_t kSerialBytes = 1 << 16;

// Calls body(begin, end), which must not throw, for pieces that cover [0, items), on up to
// pool.num_threads() threads; returns when all are done. `Pool` has num_threads() and
// Schedule(callable). Pieces are handed out as threads ask for them, since items (padded
// utterances, frames) differ in cost, and cores in what else they have to do; the less is left, the
// smaller they are.
//
// The caller waits for pieces, never for helpers to start: a pool whose threads are all busy, even
// with calls to this function, only means that the caller does more itself. Pieces begin in order:
// a thread may wait for an earlier one, which is done or has a thread.
template <class Pool, class Body>
void parallel_for(Pool& pool, int64_t items, int64_t bytes_per_item, const Body& body) {
  const int64_t threads = std::min<int64_t>(pool.num_threads(), items);
  if (threads <= 1 || items * bytes_per_item < kSerialBytes) {
    if (items > 0) body(int64_t{0}, items);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
  };
  // Tiny pieces would fight for the counter.
  const int64_t smallest = 1 + kSerialBytes / 4 / (bytes_per_item + 1);
  const auto shared = std::make_shared<Shared>();
  // A helper that starts after the last piece was taken touches `shared` only, never `body`.
  const auto work = [shared, items, smallest, threads, &body] {
    int64_t done = 0;
    for (int64_t begin = shared->next; begin < items;) {
      const int64_t piece = std::max((items - begin) / (threads * 4), smallest);
      const int64_t end = std::min(begin + piece, items);
      if (!shared->next.compare_exchange_weak(begin, end)) continue;
      body(begin, end);
      done += end - begin;
      begin = shared->next;
    }
    if (done == 0) return;
    const std::lock_guard<std::mutex> lock(shared->mutex);
    shared->done += done;
    if (shared->done == items) shared->all_done.notify_one();
  };
  for (int64_t i = 1; i < threads; ++i) {
    auto helper = work;
    pool.Schedule(std::move(helper));
  }
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == items; });
}

// Counts what some threads have finished, for others to wait for.
class Finished {
 public:
  void add() {
    count_.fetch_add(1, std::memory_order_release);
    count_.notify_all();
  }

  void wait_for(int count) const {
    // Threads that work on equal parts finish at about the same time: sooner than sleep ends.
    for (int tries = 0; tries < kTries; ++tries) {
      if (count_.load(std::memory_order_acquire) >= count) return;
#ifdef __x86_64__
      __builtin_ia32_pause();
#endif
    }
    for (int seen; (seen = count_.load(std::memory_order_acquire)) < count;) count_.wait(seen);
  }

 private:
  static constexpr int kTries = 1000;  // some tens of microseconds
  std::atomic<int> count_{0};
};

}  // namespace jax_rnnt
