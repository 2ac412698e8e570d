// Runs lattices on 1 to 8 threads and compares the results bit by bit. Built with
// -fsanitize=thread: see test_lattice_threads.py.
#include "lattice_threads.h"

#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#define JAX_RNNT_TARGET vectors_of_16_bytes
#define JAX_RNNT_VECTOR_BYTES 16
#include "lattice_kernels.h"

namespace jax_rnnt {
namespace {

// A thread for each helper, or none: pools may be busy with other things.
class Pool {
 public:
  Pool(int64_t threads, bool idle) : num_threads_(threads), idle_(idle) {}
  int64_t num_threads() const { return num_threads_; }
  template <class Helper>
  void Schedule(Helper helper) {
    if (idle_) helpers_.emplace_back(std::move(helper));
  }

 private:
  int64_t num_threads_;
  bool idle_;
  std::vector<std::jthread> helpers_;
};

template <class T>
constexpr Kernels kKernels{
    .name = "",
    .vector_bytes = JAX_RNNT_VECTOR_BYTES,
    .arcs_forward = nullptr,
    .arcs_backward = nullptr,
    .lattice =
        [](const Lattice& p, DType, int64_t begin, int64_t end) {
          for (int64_t b = begin; b < end; ++b) JAX_RNNT_TARGET::lattice_utterance<T>(p, b);
        },
    .lattice_step = [](const Lattice& p, DType, int64_t b,
                       LatticeStep step) { JAX_RNNT_TARGET::step_of_utterance<T>(p, b, step); },
    .banded_lattice = nullptr,
    .best_path = nullptr};

template <class T>
class Problem {
 public:
  Problem(int64_t batch, int64_t frames, int64_t cells, Topology topology)
      : batch_(batch), frames_(frames), cells_(cells), topology_(topology) {
    std::mt19937 random(0);
    std::normal_distribution<T> normal;
    for (std::vector<T>* plane : {&blank_, &label_}) {
      for (int64_t i = 0; i < batch * frames * cells; ++i) plane->push_back(3 * normal(random));
    }
    for (int32_t b = 0; b < batch; ++b) {
      bounds_.push_back({b, int32_t(frames) - 7 * b, 2 * b, int32_t(cells) - 1 - 3 * b});
    }
    if (batch < 3) return;
    bounds_[1].frame_end = 0;  // bad input
    blank_[(2 * frames + frames / 2) * cells + cells / 2] = T(0) / T(0);
  }

  // All results, one after another.
  std::vector<T> run(Pool pool, bool with_posteriors) const {
    const int64_t plane = batch_ * frames_ * cells_, planes = with_posteriors ? 2 * plane : 0;
    const int64_t elements =
        lattice_workspace_elements(frames_, cells_, topology_, with_posteriors);
    const T garbage = T(0) / T(0);
    std::vector<T> results(batch_ + planes, garbage), workspace(batch_ * elements, garbage);
    Lattice p{};
    p.batch = batch_, p.frames = frames_, p.cells = cells_, p.topology = topology_;
    p.blank = blank_.data(), p.label = label_.data(), p.bounds = bounds_.data();
    p.log_likelihood = results.data();
    if (with_posteriors) {
      p.blank_posteriors = results.data() + batch_;
      p.label_posteriors = results.data() + batch_ + plane;
    }
    p.workspace = workspace.data(), p.workspace_elements = elements;
    run_lattices(pool, kKernels<T>, p, sizeof(T) == 8 ? DType::kF64 : DType::kF32,
                 frames_ * cells_);
    return results;
  }

 private:
  int64_t batch_, frames_, cells_;
  Topology topology_;
  std::vector<T> blank_, label_;
  std::vector<Bounds> bounds_;
};

template <class T>
int count_differences(int64_t batch, int64_t frames, int64_t cells, Topology topology) {
  const Problem<T> problem(batch, frames, cells, topology);
  int differences = 0;
  for (const bool with_posteriors : {false, true}) {
    const std::vector<T> wanted = problem.run(Pool(1, true), with_posteriors);
    for (const int64_t threads : {2, 3, 8}) {
      for (const bool idle : {true, true, false}) {
        const std::vector<T> found = problem.run(Pool(threads, idle), with_posteriors);
        if (std::memcmp(found.data(), wanted.data(), wanted.size() * sizeof(T)) == 0) continue;
        ++differences;
        std::printf("%zu bytes, B = %ld, T = %ld, W = %ld, topology %ld: %ld threads differ\n",
                    sizeof(T), long(batch), long(frames), long(cells), long(topology),
                    long(threads));
      }
    }
  }
  return differences;
}

int count_all_differences() {
  int differences = 0;
  for (const Topology topology :
       {Topology::kRegular, Topology::kModified, Topology::kConstrained}) {
    differences += count_differences<float>(1, 400, 42, topology);
    differences += count_differences<float>(5, 131, 131, topology);
    differences += count_differences<double>(3, 700, 24, topology);
  }
  return differences;
}

}  // namespace
}  // namespace jax_rnnt

int main() { return jax_rnnt::count_all_differences() == 0 ? 0 : 1; }
