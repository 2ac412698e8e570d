// Deals the lattices of a batch out to the threads of a pool.
#pragma once

#include <memory>

#include "kernels.h"
#include "parallel.h"

namespace jax_rnnt {

// Lattices with fewer cells take about as long as it takes to wake a thread.
inline constexpr int64_t kSharedCells = 1 << 14;

// Two threads to an utterance. All inward steps begin before any outward one.
template <class Pool>
void share_lattices(Pool& pool, const Kernels& kernels, const Lattice& p, DType dtype,
                    int64_t bytes_per_utterance) {
  using Step = LatticeStep;
  const auto inward_steps = std::make_unique<Finished[]>(p.batch);
  parallel_for(pool, 4 * p.batch, bytes_per_utterance / 4, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / 2 % p.batch;
      const bool first = item % 2 == 0;
      if (item < 2 * p.batch) {
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
  if (threads > 1 && p.batch < 2 * threads && cells_per_utterance >= kSharedCells) {
    return share_lattices(pool, kernels, p, dtype, bytes);
  }
  parallel_for(pool, p.batch, bytes,
               [&](int64_t begin, int64_t end) { kernels.lattice(p, dtype, begin, end); });
}

}  // namespace jax_rnnt
