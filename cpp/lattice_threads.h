// Deals the lattices of a batch out to the threads of a pool.
#pragma once

#include <algorithm>
#include <memory>

#include "kernels.h"
#include "parallel.h"

namespace jax_rnnt {

// Lattices with fewer cells take about as long as it takes to wake a thread.
inline constexpr int64_t kSharedCells = 1 << 14;

// Utterances from `alone` on have two threads each, in four steps. All inward steps begin before
// any outward one.
template <class Pool>
void share_lattices(Pool& pool, const Kernels& kernels, const Lattice& p, DType dtype,
                    int64_t alone, int64_t bytes_per_step) {
  using Step = LatticeStep;
  const int64_t shared = p.batch - alone;
  const auto inward_steps = std::make_unique<Finished[]>(p.batch);
  parallel_for(pool, alone + 4 * shared, bytes_per_step, [&](int64_t begin, int64_t end) {
    if (begin < alone) kernels.lattice(p, dtype, begin, std::min(end, alone));
    for (int64_t item = std::max(begin, alone); item < end; ++item) {
      const int64_t step = item - alone, b = alone + step / 2 % shared;
      const bool first = step % 2 == 0;
      if (step < 2 * shared) {
        kernels.lattice_step(p, dtype, b, first ? Step::kFirstInward : Step::kSecondInward);
        inward_steps[b].add();
      } else {
        inward_steps[b].wait_for(2);
        kernels.lattice_step(p, dtype, b, first ? Step::kFirstOutward : Step::kSecondOutward);
      }
    }
  });
}

// All utterances of a batch, which have so many cells on average. Whether threads share one or not
// makes no difference to the results.
template <class Pool>
void run_lattices(Pool& pool, const Kernels& kernels, const Lattice& p, DType dtype,
                  int64_t cells_per_utterance) {
  // A cell costs a few nanoseconds, as much as streaming some tens of bytes.
  const int64_t bytes = cells_per_utterance * 64, threads = pool.num_threads();
  if (threads > 1 && cells_per_utterance >= kSharedCells) {
    // Of many, the last ones: else all would wait for the thread that took the very last.
    const int64_t alone = p.batch < 2 * threads ? 0 : p.batch - threads;
    return share_lattices(pool, kernels, p, dtype, alone, bytes / 4);
  }
  parallel_for(pool, p.batch, bytes,
               [&](int64_t begin, int64_t end) { kernels.lattice(p, dtype, begin, end); });
}

}  // namespace jax_rnnt
