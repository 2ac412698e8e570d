// How threads that have a number each find their cell.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace jax_rnnt::cuda {

// Divides by multiplication (Granlund and Montgomery, 1994): a division would take as long as a
// dozen classes of a row, before anything of it can be loaded. Of divisors that are not 0.
struct Divisor {
  uint32_t multiplier = 0;
  int first_shift = 0, second_shift = 0;

  Divisor() = default;
  explicit Divisor(uint32_t divisor) {
    int bits = 0;
    while (uint64_t{1} << bits < divisor) ++bits;
    multiplier = uint32_t((((uint64_t{1} << bits) - divisor) << 32) / divisor + 1);
    first_shift = bits == 0 ? 0 : 1;
    second_shift = bits == 0 ? 0 : bits - 1;
  }

  __device__ __forceinline__ uint32_t quotient(uint32_t number) const {
    const uint32_t high = __umulhi(multiplier, number);
    return (high + ((number - high) >> first_shift)) >> second_shift;
  }
};

// A cell's place in the batch.
struct Cell {
  int64_t batch, t, u;
};

// The cells of a batch's planes, and its rows of logits: (batch * T + t) * W + u is a cell's
// number.
struct Cells {
  int64_t count, frames, cells;
  Divisor by_frames, by_cells;  // of less than 2^32 cells, as all but few batches have

  Cells(int64_t batch, int64_t frames, int64_t cells)
      : count(batch * frames * cells), frames(frames), cells(cells) {
    if (count == 0 || count > UINT32_MAX) return;
    by_frames = Divisor(uint32_t(frames));
    by_cells = Divisor(uint32_t(cells));
  }

  __device__ __forceinline__ Cell locate(int64_t number) const {
    if (count <= UINT32_MAX) {
      const uint32_t frame = by_cells.quotient(uint32_t(number)), batch = by_frames.quotient(frame);
      return {batch, frame - batch * uint32_t(frames), uint32_t(number) - frame * uint32_t(cells)};
    }
    const int64_t frame = number / cells, batch = frame / frames;
    return {batch, frame - batch * frames, number - frame * cells};
  }
};

}  // namespace jax_rnnt::cuda
