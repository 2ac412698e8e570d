// Random sizes, scores, labels and bounds for programs that run the CPU kernels; some are bad. In
// vectors, which end where their elements do.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels.h"
#include "storage.h"

namespace jax_rnnt::JAX_RNNT_TARGET {
namespace {

std::mt19937 engine(1);

int64_t up_to(int64_t most) { return int64_t(engine() % (most + 1)); }
bool one_in(int64_t n) { return up_to(n - 1) == 0; }

template <class In>
std::vector<In> random_scores(int64_t size) {
  std::normal_distribution<float> normal(0, 3);
  const bool flawed = one_in(4);
  std::vector<In> scores(size);
  for (In& score : scores) {
    float x = one_in(100) ? -INFINITY : one_in(200) ? 90.0f : normal(engine);
    if (flawed && one_in(500)) x = one_in(2) ? NAN : INFINITY;
    store_scalar(&score, Accumulator<In>(x));
  }
  return scores;
}

Bounds random_bounds(int64_t frames, int64_t labels) {
  const auto end_of = [](int64_t size) { return int32_t(one_in(2) ? size : up_to(size)); };
  const auto begin_of = [](int64_t end) { return int32_t(one_in(2) ? 0 : up_to(end)); };
  const int32_t frame_end = end_of(frames), label_end = end_of(labels);
  Bounds bounds{begin_of(frame_end), frame_end, begin_of(label_end), label_end};
  if (one_in(9)) {
    int32_t* const members[] = {&bounds.frame_begin, &bounds.frame_end, &bounds.label_begin,
                                &bounds.label_end};
    const int64_t bad[] = {-1, frames + 1, labels + 1, INT32_MIN, INT32_MAX};
    *members[up_to(3)] = int32_t(bad[up_to(4)]);
  }
  return bounds;
}

std::vector<Bounds> random_bounds(int64_t batch, int64_t frames, int64_t labels) {
  std::vector<Bounds> bounds(batch);
  for (Bounds& of : bounds) of = random_bounds(frames, labels);
  return bounds;
}

}  // namespace
}  // namespace jax_rnnt::JAX_RNNT_TARGET
