// Arcs of the additive joiner: the denominators are products of exponentials of its two halves,
// relative to the largest score of each row. Where these peak at different classes, all products
// may be too small for floating point: a warp computes such cells again, exactly.
#include "factored.h"
#include "launch.h"
#include "log_sum_exp.h"

namespace jax_rnnt::cuda {
namespace {

// The frames and label positions that an utterance has: none if its bounds are bad.
struct Extent {
  int frame_begin = 0, frame_end = 0, position_begin = 0, position_end = 0;

  __device__ __forceinline__ Extent(const FactoredForward& p, int64_t b) {
    const Bounds bounds = p.bounds[b];
    if (!bounds.valid(p.frames, p.cells - 1)) return;
    frame_begin = bounds.frame_begin;
    frame_end = bounds.frame_end;
    position_begin = bounds.label_begin;
    position_end = bounds.label_end + 1;
  }
  __device__ __forceinline__ bool has_frame(int t) const {
    return frame_begin <= t && t < frame_end;
  }
  __device__ __forceinline__ bool has_position(int u) const {
    return position_begin <= u && u < position_end;
  }
  __device__ __forceinline__ bool meets(const TilePlace& tile, int rows, int columns) const {
    return tile.row < frame_end && tile.row + rows > frame_begin && tile.column < position_end &&
           tile.column + columns > position_begin;
  }
};

// The largest score of each frame's row, then of each label position's, by a warp a row; for
// smoothed arcs also the logarithm of the encoder's sum.
template <class In>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks<In>)
    factored_tops_kernel(const FactoredForward p) {
  using T = Accumulator<In>;
  const int64_t row = int64_t(blockIdx.x) * (kRowThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t am_rows = p.batch * p.frames;
  if (row >= am_rows + p.batch * p.cells) return;
  const bool is_frame = row < am_rows;
  const int64_t index = is_frame ? row : row - am_rows, rows = is_frame ? p.frames : p.cells;
  const int64_t b = index / rows, i = index - b * rows;
  const Extent extent(p, b);
  const bool inside = is_frame ? extent.has_frame(int(i)) : extent.has_position(int(i));

  T top = 0, encoder_log = 0;
  if (inside && p.normalization != Normalization::kNone) {
    const In* scores = static_cast<const In*>(is_frame ? p.am : p.lm) + index * p.classes;
    LogSumExp<T> total =
        partial_log_sum_exp<kWarp>(scores, int(p.classes), lane, excluded_class(p));
    combine_group<kWarp>(total);
    // A row of all -inf has none; NaN and +inf have made the sum NaN.
    if (total.sum != 0) top = total.sum == total.sum ? total.max : not_a_number<T>();
    if (is_frame && p.smoothing.used()) {
      const T* average = static_cast<const T*>(p.smoothing.average) + b * p.classes;
      encoder_log = log_sum_exp<T>(int(p.classes), lane,
                                   [&](int v) { return (widen(scores[v]) - top) + average[v]; });
    }
  }
  if (lane != 0) return;
  static_cast<T*>(is_frame ? p.am_top : p.lm_top)[index] = top;
  if (is_frame && p.smoothing.used())
    static_cast<T*>(p.smoothing.encoder_logs)[index] = encoder_log;
}

// That a warp loads together.
inline constexpr int kFramesAtOnce = 4;

// What a lane's label position has for the arcs of all frames. Scores are relative to the row's
// largest where the arc is normalized by the softmax.
template <class T>
struct Position {
  int label_id = 0;
  bool inside = false, has_label = false;
  T blank = 0, label = 0;
  T blank_score = 0, label_score = 0;  // of smoothed arcs
};

template <class In, class T>
__device__ __forceinline__ Position<T> load_position(const FactoredForward& p, const Extent& extent,
                                                     int64_t b, int u) {
  Position<T> position;
  position.inside = extent.has_position(u);
  if (!position.inside) return position;
  const int64_t row = b * p.cells + u;
  const In* scores = static_cast<const In*>(p.lm) + row * p.classes;
  const T top = static_cast<const T*>(p.lm_top)[row];
  position.has_label = u + 1 < extent.position_end;
  position.label_id = clipped_label(p, b, u);
  position.blank = widen(scores[p.blank_id]);
  if (p.normalization == Normalization::kSoftmax) position.blank -= top;
  position.label = widen(scores[position.label_id]) - top;
  if (p.smoothing.used()) {
    position.blank_score = static_cast<const T*>(p.blank_scores)[row];
    position.label_score = static_cast<const T*>(p.label_scores)[row];
  }
  return position;
}

// The same of a frame.
template <class In>
struct Frame {
  using T = Accumulator<In>;

  bool inside;
  int64_t row;
  const In* scores;
  In at_blank;
  T top, encoder_log;

  __device__ __forceinline__ void load(const FactoredForward& p, const Extent& extent, int64_t b,
                                       int t) {
    inside = extent.has_frame(t);
    row = b * p.frames + t;
    scores = static_cast<const In*>(p.am) + row * p.classes;
    narrow(T(0), at_blank);
    top = encoder_log = 0;
    if (!inside) return;
    at_blank = scores[p.blank_id];
    top = static_cast<const T*>(p.am_top)[row];
    if (p.smoothing.used()) encoder_log = static_cast<const T*>(p.smoothing.encoder_logs)[row];
  }
};

template <class T>
struct Arcs {
  T blank, label;
};

// A cell's arcs from scores of both halves, and the logarithm of its sum.
template <class T>
__device__ __forceinline__ Arcs<T> arcs_of_cell(const FactoredForward& p,
                                                const Position<T>& position, T am_blank, T am_label,
                                                T encoder_log, T log) {
  constexpr T kMinusInfinity = -Constants<T>::kInfinity;
  // A class that is forbidden to a softmax stays so also where all are.
  const auto log_ratio = [&](T x, T y) {
    const bool forbidden = (x == kMinusInfinity || y == kMinusInfinity) && log == log;
    return forbidden ? kMinusInfinity : (x + y) - log;
  };
  if (p.normalization == Normalization::kNone) {
    return {am_blank + position.blank, am_label + position.label};
  }
  if (p.normalization == Normalization::kHat) {
    const LogSigmoids<T> sigmoids(am_blank + position.blank);
    return {sigmoids.of_z, log_ratio(am_label, position.label) + sigmoids.of_minus_z};
  }
  const Arcs<T> arcs{log_ratio(am_blank, position.blank), log_ratio(am_label, position.label)};
  if (!p.smoothing.used()) return arcs;
  const auto smoothed = [&](T joint, T am_score, T score) {
    const T alone = T(p.smoothing.am_share) * (am_score - encoder_log) + score;
    // A class that the average forbids stays so where it forbids all; NaN stays, too.
    const bool forbidden = joint == kMinusInfinity || (score == kMinusInfinity && joint == joint);
    return forbidden ? kMinusInfinity : T(p.smoothing.joint_share) * joint + alone;
  };
  return {smoothed(arcs.blank, am_blank, position.blank_score),
          smoothed(arcs.label, am_label, position.label_score)};
}

// log sum_v exp(am[v] - am_top + lm[v] - lm_top) of a cell, by a warp.
template <class In>
__device__ __forceinline__ Accumulator<In> exact_log_sum(const FactoredForward& p, int64_t am_row,
                                                         int64_t lm_row, int lane) {
  using T = Accumulator<In>;
  const In* am = static_cast<const In*>(p.am) + am_row * p.classes;
  const In* lm = static_cast<const In*>(p.lm) + lm_row * p.classes;
  const T am_top = static_cast<const T*>(p.am_top)[am_row];
  const T lm_top = static_cast<const T*>(p.lm_top)[lm_row];
  const int excluded = excluded_class(p);
  return log_sum_exp<T>(int(p.classes), lane, [&](int v) {
    const T term = (widen(am[v]) - am_top) + (widen(lm[v]) - lm_top);
    return v == excluded ? -Constants<T>::kInfinity : term;
  });
}

// Puts logarithms in the place of the sums of a warp's rows. A lane has the same columns of all.
template <class In, int kLaneColumns>
__device__ __forceinline__ void take_logarithms(
    const FactoredForward& p, const Extent& extent, const TilePlace& tile,
    const Position<Accumulator<In>> (&positions)[kLaneColumns],
    typename ProductTile<Accumulator<In>>::Memory& memory) {
  using T = Accumulator<In>;
  constexpr int kRowsOfWarp = ProductTile<T>::kRowsOfWarp;
  const int first = threadIdx.x / kWarp * kRowsOfWarp, lane = threadIdx.x % kWarp;
  const T log_smallest = log_of(smallest_exact_sum<T>(p.classes));
  const auto is_inexact = [&](int row, int c) {
    return extent.has_frame(tile.row + row) && positions[c].inside &&
           memory.sums[row][c * kWarp + lane] < log_smallest;
  };
  bool any_inexact = false;
#pragma unroll 4
  for (int row = first; row < first + kRowsOfWarp; ++row) {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      T& element = memory.sums[row][c * kWarp + lane];
      element = log_of(element);
      any_inexact |= is_inexact(row, c);
    }
  }
  if (!__any_sync(kAllLanes, any_inexact)) return;
#pragma unroll 1
  for (int row = first; row < first + kRowsOfWarp; ++row) {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      unsigned inexact = __ballot_sync(kAllLanes, is_inexact(row, c));
#pragma unroll 1
      while (inexact != 0) {
        const int owner = __ffs(int(inexact)) - 1, column = c * kWarp + owner;
        inexact &= inexact - 1;
        const T log = exact_log_sum<In>(p, tile.outer * p.frames + tile.row + row,
                                        tile.outer * p.cells + tile.column + column, lane);
        if (lane == owner) memory.sums[row][column] = log;
      }
    }
  }
}

// Those of an utterance's rows, relative to their tops.
template <class In>
__device__ __forceinline__ Exponentials<In> exponentials(const FactoredForward& p,
                                                         const void* scores, const void* tops,
                                                         int64_t b, int64_t rows) {
  return {static_cast<const In*>(scores) + b * rows * p.classes,
          int(rows),
          int(p.classes),
          p.classes,
          static_cast<const Accumulator<In>*>(tops) + b * rows,
          excluded_class(p)};
}

// Some of a warp's rows, from row `first` of the tile on: loaded together, then written.
template <class In, int kLaneColumns>
__device__ __forceinline__ void write_arcs(
    const FactoredForward& p, const Extent& extent, const TilePlace& tile,
    const Position<Accumulator<In>> (&positions)[kLaneColumns],
    const typename ProductTile<Accumulator<In>>::Memory& memory, int first) {
  using T = Accumulator<In>;
  const int lane = threadIdx.x % kWarp;
  const bool relative = p.normalization != Normalization::kNone;
  Frame<In> frames[kFramesAtOnce];
  In at_label[kFramesAtOnce][kLaneColumns];
#pragma unroll
  for (int k = 0; k < kFramesAtOnce; ++k) {
    frames[k].load(p, extent, tile.outer, tile.row + first + k);
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      narrow(T(0), at_label[k][c]);
      if (frames[k].inside && positions[c].inside) {
        at_label[k][c] = frames[k].scores[positions[c].label_id];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kFramesAtOnce; ++k) {
    const Frame<In>& frame = frames[k];
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      const Position<T>& position = positions[c];
      const int u = tile.column + c * kWarp + lane;
      const bool inside = frame.inside && position.inside;
      if (tile.row + first + k >= p.frames || u >= p.cells) continue;
      Arcs<T> arcs{-Constants<T>::kInfinity, -Constants<T>::kInfinity};
      T log = 0;
      if (inside) {
        if (relative) log = memory.sums[first + k][c * kWarp + lane];
        const T am_blank = widen(frame.at_blank);
        arcs = arcs_of_cell<T>(
            p, position,
            p.normalization == Normalization::kSoftmax ? am_blank - frame.top : am_blank,
            widen(at_label[k][c]) - frame.top, frame.encoder_log, log);
      }
      if (!position.has_label) arcs.label = -Constants<T>::kInfinity;
      const int64_t cell = frame.row * p.cells + u;
      static_cast<T*>(p.blank)[cell] = arcs.blank;
      static_cast<T*>(p.label)[cell] = arcs.label;
      static_cast<T*>(p.denominators)[cell] = log;
    }
  }
}

template <class In>
__global__ void __launch_bounds__(ProductTile<Accumulator<In>>::kThreads,
                                  ProductTile<Accumulator<In>>::kBlocks)
    factored_arcs_kernel(const FactoredForward p, const int frame_tiles, const int position_tiles) {
  using T = Accumulator<In>;
  using Tile = ProductTile<T>;
  constexpr int kLaneColumns = Tile::kLaneColumns, kFramesOfWarp = Tile::kRowsOfWarp;
  __shared__ typename Tile::Memory memory;
  const TilePlace tile = TilePlace::of<T>(blockIdx.x, frame_tiles, position_tiles);
  const int64_t b = tile.outer;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Extent extent(p, b);
  const bool relative = p.normalization != Normalization::kNone;
  const bool visited = extent.meets(tile, Tile::kRows, Tile::kColumns);
  if (relative && visited) {
    const auto am = exponentials<In>(p, p.am, p.am_top, b, p.frames);
    const auto lm = exponentials<In>(p, p.lm, p.lm_top, b, p.cells);
    multiply<T>(int(p.classes), Stage<Tile::kRows, true, Exponentials<In>>(am, tile.row),
                Stage<Tile::kColumns, true, Exponentials<In>>(lm, tile.column), memory);
  }

  Position<T> positions[kLaneColumns];
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) {
    positions[c] = load_position<In, T>(p, extent, b, tile.column + c * kWarp + lane);
  }
  if (relative && visited) take_logarithms<In>(p, extent, tile, positions, memory);
#pragma unroll 1
  for (int i = 0; i < kFramesOfWarp; i += kFramesAtOnce) {
    write_arcs<In>(p, extent, tile, positions, memory, warp * kFramesOfWarp + i);
  }
}

template <class In>
cudaError_t launch_factored_forward(const FactoredForward& p, cudaStream_t stream) {
  using Tile = ProductTile<Accumulator<In>>;
  if (!countable<In>(p)) return cudaErrorInvalidValue;
  const int64_t rows = p.batch * (p.frames + p.cells);
  const Grid rows_grid{blocks_for_rows(rows, kWarp), kRowThreads};
  const cudaError_t status = launch(factored_tops_kernel<In>, rows_grid, stream, p);
  if (status != cudaSuccess) return status;
  const int64_t frame_tiles = tiles_of(p.frames, Tile::kRows);
  const int64_t position_tiles = tiles_of(p.cells, Tile::kColumns);
  const Grid grid{p.batch * frame_tiles * position_tiles, Tile::kThreads};
  return launch(factored_arcs_kernel<In>, grid, stream, p, int(frame_tiles), int(position_tiles));
}

}  // namespace

cudaError_t factored_forward(const FactoredForward& p, DType dtype, cudaStream_t stream) {
  switch (dtype) {
    case DType::kF32: return launch_factored_forward<float>(p, stream);
    case DType::kF64: return launch_factored_forward<double>(p, stream);
    case DType::kBF16: return launch_factored_forward<__nv_bfloat16>(p, stream);
    case DType::kF16: return launch_factored_forward<__half>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace jax_rnnt::cuda
