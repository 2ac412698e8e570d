// Products of matrices by tiles: a block computes kRows x kColumns sums over a depth, each thread
// kMicro x kMicro of them in registers. Elements are made where they are loaded: exponentials of
// scores are nowhere stored but in shared memory.
//
// In floating point of the arcs' precision, since logarithms of the sums are taken: the tensor
// cores' shorter mantissas would show there.
#pragma once

#include "device.h"

namespace jax_rnnt::cuda {

template <class T>
struct ProductTile {
  static constexpr int kThreads = 128, kWarps = kThreads / kWarp;
  static constexpr int kDepth = 16;                    // staged at a time
  static constexpr int kVector = 16 / int(sizeof(T));  // elements of a load from shared memory
  static constexpr int kMicro = 2 * kVector;
  static constexpr int kThreadRows = 16, kThreadColumns = kThreads / kThreadRows;
  static constexpr int kRows = kThreadRows * kMicro, kColumns = kThreadColumns * kMicro;
  // What a warp has of the sums: some rows, and of each so many elements a lane.
  static constexpr int kRowsOfWarp = kRows / kWarps, kLaneColumns = kColumns / kWarp;
  // Enough blocks on a multiprocessor that some multiply while others load; 7.5, 8.6, 8.9 and 12.0
  // have shared memory for one or two.
  static constexpr int kBlocks = 3;

  // Padded: threads that store along the depth would meet in one bank.
  struct Staged {
    T rows[kDepth][kRows + kVector];
    T columns[kDepth][kColumns + kVector];
  };
  union alignas(16) Memory {
    Staged staged[2];
    T sums[kRows][kColumns + 1];
  };
  using Sums = T[kMicro][kMicro];

  // The row, or column, of a tile that sum i of thread `thread` of `threads` side by side is in.
  __device__ __forceinline__ static int place(int i, int thread, int threads) {
    return i / kVector * threads * kVector + thread * kVector + i % kVector;
  }
  __device__ __forceinline__ static int row_of(int i) {
    return place(i, threadIdx.x / kThreadColumns, kThreadRows);
  }
  __device__ __forceinline__ static int column_of(int j) {
    return place(j, threadIdx.x % kThreadColumns, kThreadColumns);
  }
};

// One factor of a product as it is in memory, 0 beyond its rows and columns.
template <class T>
struct Plane {
  using Element = T;
  static constexpr bool kExponential = false;

  const T* data;
  int rows, columns;
  int64_t stride;
};

// Likewise exp(score - shift) of rows of scores; 0 for a row whose shift is +inf, whatever it
// holds.
template <class In>
struct Exponentials {
  using Element = In;
  static constexpr bool kExponential = true;

  const In* data;
  int rows, columns;
  int64_t stride;
  const Accumulator<In>* shifts;
  int excluded;  // a class that counts as -inf, or -1
};

// A thread's share in staging a factor. `kCount` is the tile's size; the depth is either the
// factor's columns, neighbours in memory, or its rows.
template <int kCount, bool kDepthIsColumns, class Factor>
struct Stage {
  using Element = typename Factor::Element;
  using T = Accumulator<Element>;
  using Tile = ProductTile<T>;
  static constexpr int kStep = Tile::kThreads / (kDepthIsColumns ? Tile::kDepth : kCount);  // rows
  static constexpr int kElements = kCount * Tile::kDepth / Tile::kThreads;

  const int64_t stride;
  const Element* from;          // the first element to load, of every kStep-th row
  const T* shifts_from;         // that of its row
  int rows_left, columns_left;  // from it on; of columns, when the depth is rows, only whether
  int excluded;                 // column, counted from it, or negative
  Element loaded[kElements];    // not widened before they are used: to widen is to wait
  T shifts[kElements];

  // For the tile's elements from row, or column, `first` of the factor on.
  __device__ __forceinline__ Stage(const Factor& factor, int first) : stride(factor.stride) {
    const int thread = threadIdx.x;
    const int row = kDepthIsColumns ? first + thread / Tile::kDepth : thread / kCount;
    const int column = kDepthIsColumns ? thread % Tile::kDepth : first + thread % kCount;
    from = factor.data + row * factor.stride + column;
    rows_left = factor.rows - row;
    columns_left = factor.columns - column;
    if constexpr (Factor::kExponential) {
      shifts_from = factor.shifts + row;
      excluded = factor.excluded - column;
      if (!kDepthIsColumns && excluded == 0) columns_left = 0;
      if (kDepthIsColumns) load_shifts();
    }
  }

  __device__ __forceinline__ void load_shifts() {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      shifts[i] = Constants<T>::kInfinity;
      if (i * kStep < rows_left) shifts[i] = shifts_from[i * kStep];
    }
  }

  // Loads what is to be stored next, and goes on to what comes after it.
  __device__ __forceinline__ void load() {
    bool is_column = columns_left > 0;
    Element none;
    narrow(T(0), none);
    if constexpr (Factor::kExponential) {
      narrow(-Constants<T>::kInfinity, none);
      if (kDepthIsColumns) is_column = is_column && excluded != 0;
    }
    const Element* element = from;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      bool is_row = i * kStep < rows_left;
      // What is known anyway takes no more registers.
      if constexpr (kDepthIsColumns && Factor::kExponential) {
        is_row = shifts[i] != Constants<T>::kInfinity;
      }
      loaded[i] = none;
      if (is_column && is_row) loaded[i] = *element;
      element += kStep * stride;
    }
    if constexpr (kDepthIsColumns) {
      from += Tile::kDepth;
      columns_left -= Tile::kDepth;
      if constexpr (Factor::kExponential) excluded -= Tile::kDepth;
    } else {
      if constexpr (Factor::kExponential) {
        load_shifts();
        shifts_from += Tile::kDepth;
      }
      from += Tile::kDepth * stride;
      rows_left -= Tile::kDepth;
    }
  }

  template <int kStride>
  __device__ __forceinline__ void store(T (&to)[Tile::kDepth][kStride]) const {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      T x = widen(loaded[i]);
      if constexpr (Factor::kExponential) {
        x = exp_nonpositive(x - shifts[i]);
        if (shifts[i] == Constants<T>::kInfinity) x = 0;
      }
      if constexpr (kDepthIsColumns) {
        to[threadIdx.x % Tile::kDepth][threadIdx.x / Tile::kDepth + i * kStep] = x;
      } else {
        to[threadIdx.x / kCount + i * kStep][threadIdx.x % kCount] = x;
      }
    }
  }
};

template <class T, int kStride>
__device__ __forceinline__ void load_micro(const T (&from)[kStride], int thread, int threads,
                                           T (&to)[ProductTile<T>::kMicro]) {
  constexpr int kVector = ProductTile<T>::kVector;
  struct alignas(16) Vector {
    T of[kVector];
  };
#pragma unroll
  for (int i = 0; i < ProductTile<T>::kMicro; i += kVector) {
    const auto v =
        *reinterpret_cast<const Vector*>(from + ProductTile<T>::place(i, thread, threads));
#pragma unroll
    for (int k = 0; k < kVector; ++k) to[i + k] = v.of[k];
  }
}

template <class T>
__device__ __forceinline__ void add_products(const typename ProductTile<T>::Staged& staged,
                                             typename ProductTile<T>::Sums& sums) {
  using Tile = ProductTile<T>;
#pragma unroll
  for (int k = 0; k < Tile::kDepth; ++k) {
    T rows[Tile::kMicro], columns[Tile::kMicro];
    load_micro(staged.rows[k], threadIdx.x / Tile::kThreadColumns, Tile::kThreadRows, rows);
    load_micro(staged.columns[k], threadIdx.x % Tile::kThreadColumns, Tile::kThreadColumns,
               columns);
#pragma unroll
    for (int i = 0; i < Tile::kMicro; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kMicro; ++j) sums[i][j] += rows[i] * columns[j];
    }
  }
}

// The products of a block's rows and columns, summed over the depth and put into memory.sums. All
// threads call it; what is staged next is loaded while the last is multiplied.
template <class T, class Rows, class Columns>
__device__ __forceinline__ void multiply(int depth, Rows rows, Columns columns,
                                         typename ProductTile<T>::Memory& memory) {
  using Tile = ProductTile<T>;
  typename Tile::Sums sums = {};
  int turn = 0;
  rows.load();
  columns.load();
#pragma unroll 1
  for (int left = depth; left > 0; left -= Tile::kDepth) {
    rows.store(memory.staged[turn].rows);
    columns.store(memory.staged[turn].columns);
    if (left > Tile::kDepth) {
      rows.load();
      columns.load();
    }
    __syncthreads();
    add_products<T>(memory.staged[turn], sums);
    turn ^= 1;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Tile::kMicro; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kMicro; ++j) {
      memory.sums[Tile::row_of(i)][Tile::column_of(j)] = sums[i][j];
    }
  }
  __syncthreads();
}

}  // namespace jax_rnnt::cuda
