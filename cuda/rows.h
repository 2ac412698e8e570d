// How the arcs kernels go over the rows of logits: a group of neighbouring lanes takes a row, each
// lane 16-byte vectors of it.
//
// Rows start anywhere, but vectors are aligned: the first and the last vector of a row also hold
// elements of its neighbours, which are masked. So every byte is loaded in 16-byte pieces whatever
// V is.
#pragma once

#include "device.h"

namespace jax_rnnt::cuda {

inline constexpr int kRowThreads = 256;
// On a multiprocessor: with 16 bytes a vector, enough loads in flight to cover memory's latency.
template <class In>
inline constexpr int kRowBlocks = sizeof(In) == 8 ? 2 : 4;
inline constexpr int kVectorsInFlight = 4;  // of a lane, loaded before any is used
inline constexpr int kVectorBytes = 16;

template <class In>
inline constexpr int kVectorSize = kVectorBytes / int(sizeof(In));

// Lanes that share a row of V classes: so many that each has a few vectors.
template <class In>
int group_size(int64_t classes) {
  const int64_t vectors = (classes + kVectorSize<In> - 1) / kVectorSize<In>;
  if (vectors <= 3) return 1;
  if (vectors <= 8) return 2;
  if (vectors <= 32) return 8;
  return kWarp;
}

inline int64_t blocks_for_rows(int64_t rows, int group) {
  const int64_t rows_per_block = kRowThreads / group;
  return (rows + rows_per_block - 1) / rows_per_block;
}

// A row's place in the batch.
struct Cell {
  int64_t row;    // (batch * T + t) * W + u
  int64_t frame;  // batch * T + t
  int64_t batch, t, u;
};

// Divisions of 64-bit numbers would take longer than a short row; few batches need them.
__device__ __forceinline__ Cell locate(int64_t row, int64_t rows, int64_t frames, int64_t cells) {
  Cell cell;
  cell.row = row;
  if (rows <= UINT32_MAX) {
    const uint32_t narrow_row = uint32_t(row), narrow_frame = narrow_row / uint32_t(cells);
    const uint32_t narrow_batch = narrow_frame / uint32_t(frames);
    cell.frame = narrow_frame;
    cell.u = narrow_row - narrow_frame * uint32_t(cells);
    cell.batch = narrow_batch;
    cell.t = narrow_frame - narrow_batch * uint32_t(frames);
  } else {
    cell.frame = row / cells;
    cell.u = row - cell.frame * cells;
    cell.batch = cell.frame / frames;
    cell.t = cell.frame - cell.batch * frames;
  }
  return cell;
}

template <class In>
struct alignas(kVectorBytes) Vector {
  In element[kVectorSize<In>];
};

// One row as aligned vectors. Element j of vector i is class i * kVectorSize + j - offset.
template <class In>
struct RowVectors {
  int64_t first;   // element of the buffer that vector 0 starts with; may lie before the buffer
  int64_t buffer;  // elements in the buffer
  int offset, classes, count;

  __device__ __forceinline__ RowVectors(const In* data, int64_t row, int64_t rows, int64_t classes)
      : buffer(rows * classes), classes(int(classes)) {
    const int64_t start = row * classes;
    const uintptr_t address = reinterpret_cast<uintptr_t>(data + start);
    offset = int(address % kVectorBytes / sizeof(In));
    first = start - offset;
    count = (offset + this->classes + kVectorSize<In> - 1) / kVectorSize<In>;
  }

  __device__ __forceinline__ int class_of(int vector, int j) const {
    return vector * kVectorSize<In> + j - offset;
  }
  __device__ __forceinline__ bool is_class(int index) const {
    return unsigned(index) < unsigned(classes);
  }
  // Whether all elements are classes of this row.
  __device__ __forceinline__ bool is_whole(int vector) const {
    return class_of(vector, 0) >= 0 && class_of(vector, kVectorSize<In> - 1) < classes;
  }

  // Elements outside of the row are anything, those outside of the buffer are not touched.
  __device__ __forceinline__ Vector<In> load(const In* data, int vector) const {
    const int64_t element = first + int64_t(vector) * kVectorSize<In>;
    if (element >= 0 && element + kVectorSize<In> <= buffer) {
      const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(data + element));
      return *reinterpret_cast<const Vector<In>*>(&raw);
    }
    Vector<In> v;
#pragma unroll
    for (int j = 0; j < kVectorSize<In>; ++j) {
      narrow(Accumulator<In>(0), v.element[j]);
      if (is_class(class_of(vector, j))) v.element[j] = data[element + j];
    }
    return v;
  }

  __device__ __forceinline__ void store(In* data, int vector, const Vector<In>& v) const {
    const int64_t element = first + int64_t(vector) * kVectorSize<In>;
    if (is_whole(vector)) {
      __stcs(reinterpret_cast<uint4*>(data + element), *reinterpret_cast<const uint4*>(&v));
      return;
    }
#pragma unroll
    for (int j = 0; j < kVectorSize<In>; ++j) {
      if (is_class(class_of(vector, j))) data[element + j] = v.element[j];
    }
  }
};

}  // namespace jax_rnnt::cuda
