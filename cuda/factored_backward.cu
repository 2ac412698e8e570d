// Gradients of the additive joiner's halves, from those of its arcs. With w[t, u] the weight that a
// cell's softmax has,
//
//   factor[t, u] = w[t, u] exp(-denominator[t, u]),
//   counts by am[t, v] = exp(am[t, v] - top) sum_u factor[t, u] exp(lm[u, v] - top),
//
// and likewise by lm, summed over t: two products. Smoothed, the sum over u has one more term, with
// the weight of the frame and the average in the place of lm[u]. Cells whose sum of products was
// too small have no factor; their terms are added one by one.
#include "factored_weights.h"
#include "launch.h"

namespace jax_rnnt::cuda {
namespace {

template <class In>
__device__ __forceinline__ Exponentials<In> exponentials(const FactoredUtterance<In>& of,
                                                         const In* scores, int64_t shifts,
                                                         int64_t begin, int64_t rows) {
  return {scores + begin * of.p.classes, int(rows),           int(of.p.classes), of.p.classes,
          of.workspace + shifts + begin, excluded_class(of.p)};
}

// The gradient by a tile of `am`: frames, classes.
template <class In>
struct FramesTile {
  using T = Accumulator<In>;
  using Tile = ProductTile<T>;
  using Term = typename FactoredUtterance<In>::Term;
  static constexpr int kLaneColumns = Tile::kLaneColumns, kFramesOfWarp = Tile::kRowsOfWarp;
  static constexpr int kFramesAtOnce = 4;

  // Label positions whose label is one of the tile's classes.
  struct Labels {
    int count_of_warp[Tile::kWarps];
    int position[Tile::kThreads], column[Tile::kThreads];
  };

  const FactoredUtterance<In>& of;
  const TilePlace& place;
  typename Tile::Memory& memory;
  Labels& labels;

  __device__ __forceinline__ static int warp() { return threadIdx.x / kWarp; }
  __device__ __forceinline__ static int lane() { return threadIdx.x % kWarp; }
  __device__ __forceinline__ T arcs_share() const { return of.joint_share() + of.am_share(); }
  __device__ __forceinline__ T use(int t) const {
    return t < of.p.frames ? of.workspace[of.layout.use_of_frame + t] : T(kUnused);
  }

  __device__ __forceinline__ void run() {
    if (any_frame_of(kSoftmax)) {
      const int frames = int(of.p.frames), cells = int(of.p.cells);
      const Plane<T> factors{of.workspace + of.layout.factors, frames, cells, of.layout.width};
      const auto lm = exponentials(of, of.lm, of.layout.shift_of_position, 0, cells);
      multiply<T>(cells, Stage<Tile::kRows, true, Plane<T>>(factors, place.row),
                  Stage<Tile::kColumns, false, Exponentials<In>>(lm, place.column), memory);
    }
#pragma unroll 1
    for (int i = 0; i < kFramesOfWarp; i += kFramesAtOnce) add_am(warp() * kFramesOfWarp + i);
    __syncwarp();
    if (any_frame_of(kArcsOnly)) subtract_labels();
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < kFramesOfWarp; i += kFramesAtOnce) write(warp() * kFramesOfWarp + i);
  }

  // Whether the tile has a frame with weights for as much. All threads call it.
  __device__ __forceinline__ bool any_frame_of(int least_use) const {
    const bool is_row = int(threadIdx.x) < Tile::kRows;
    return __syncthreads_or(is_row && use(place.row + int(threadIdx.x)) >= T(least_use)) != 0;
  }

  // Makes expected counts of the sums of some rows.
  __device__ __forceinline__ void add_am(int first) {
    In scores[kFramesAtOnce][kLaneColumns];
    T uses[kFramesAtOnce], tops[kFramesAtOnce], averages[kLaneColumns];
    Term of_average[kFramesAtOnce];
    const bool smoothed = of.p.smoothing.used();
    const int excluded = excluded_class(of.p);
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      const int v = place.column + c * kWarp + lane();
      averages[c] = smoothed && v < of.p.classes ? of.average[v] : T(0);
    }
#pragma unroll
    for (int k = 0; k < kFramesAtOnce; ++k) {
      const int t = place.row + first + k;
      uses[k] = use(t);
      tops[k] = 0;
      of_average[k] = {T(0), T(0)};
      if (uses[k] >= T(kSoftmax)) {
        tops[k] = of.am_top[t];
        if (smoothed) of_average[k] = of.term_of_average(t);
      }
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const int v = place.column + c * kWarp + lane();
        narrow(-Constants<T>::kInfinity, scores[k][c]);
        if (uses[k] >= T(kSoftmax) && v < of.p.classes && v != excluded) {
          scores[k][c] = of.am[t * of.p.classes + v];
        }
      }
    }
    bool any_inexact = false;
#pragma unroll
    for (int k = 0; k < kFramesAtOnce; ++k) {
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        T& element = memory.sums[first + k][c * kWarp + lane()];
        const T score = widen(scores[k][c]) - tops[k];
        T counts = 0;
        if (uses[k] >= T(kSoftmax)) counts = element * exp_nonpositive(score);
        if (of_average[k].weight != 0) {
          counts +=
              of_average[k].weight * exp_nonpositive((score + averages[c]) - of_average[k].log);
        }
        element = counts;
      }
      any_inexact |= uses[k] == T(kInexact);
    }
    if (any_inexact) add_inexact_cells(first);
  }

  // What those cells of these rows have that have no factor. The lanes look for them together, then
  // add what each one has to their columns.
  __device__ __forceinline__ void add_inexact_cells(int first) {
    const T log_smallest = of.log_smallest();
    const int excluded = excluded_class(of.p);
#pragma unroll 1
    for (int row = first; row < first + kFramesAtOnce; ++row) {
      const int t = place.row + row;
      if (use(t) != T(kInexact)) continue;
#pragma unroll 1
      for (int begin = 0; begin < of.p.cells; begin += kWarp) {
        Term of_lane{T(0), T(0)};
        if (begin + lane() < of.p.cells) of_lane = of.term_of_cell(t, begin + lane());
        unsigned inexact = __ballot_sync(kAllLanes, of_lane.inexact(log_smallest));
#pragma unroll 1
        while (inexact != 0) {
          const int owner = __ffs(int(inexact)) - 1;
          inexact &= inexact - 1;
          const T weight = __shfl_sync(kAllLanes, of_lane.weight, owner);
          const T log = __shfl_sync(kAllLanes, of_lane.log, owner);
          const T lm_top = of.lm_top[begin + owner];
          const In* lm = of.lm + (begin + owner) * of.p.classes;
          for (int column = lane(); column < Tile::kColumns; column += kWarp) {
            const int v = place.column + column;
            if (v >= of.p.classes || v == excluded) continue;
            const T am = widen(of.am[t * of.p.classes + v]) - of.am_top[t];
            const T score = am + (widen(lm[v]) - lm_top);
            memory.sums[row][column] += weight * exp_nonpositive(score - log);
          }
        }
      }
    }
  }

  // A lane for each of the warp's rows, since positions may have a label in common: one after
  // another, but loaded together.
  __device__ __forceinline__ void subtract_labels() {
    constexpr int kAtOnce = 8;
    const int row = warp() * kFramesOfWarp + lane(), t = place.row + row;
    const bool is_row = lane() < kFramesOfWarp && use(t) != T(kUnused);
    const int num_labels = int(of.p.cells) - 1;
    const T* weights = of.label + int64_t(t) * of.p.cells;
    for (int begin = 0; begin < num_labels; begin += Tile::kThreads) {
      const int count = find_labels(begin, num_labels);
      for (int i = 0; i < count && is_row; i += kAtOnce) {
        T weight[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          weight[k] = i + k < count ? weights[labels.position[i + k]] : T(0);
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          if (i + k < count) memory.sums[row][labels.column[i + k]] -= arcs_share() * weight[k];
        }
      }
    }
  }

  // Collects them from position `begin` on, in order, for as many positions as there are threads.
  __device__ __forceinline__ int find_labels(int begin, int num_labels) {
    const int u = begin + int(threadIdx.x);
    const int column = u < num_labels ? clipped_label(of.p, of.b, u) - place.column : -1;
    const bool here = 0 <= column && column < Tile::kColumns;
    const unsigned in_warp = __ballot_sync(kAllLanes, here);
    __syncthreads();  // the last ones have been read
    if (lane() == 0) labels.count_of_warp[warp()] = __popc(in_warp);
    __syncthreads();
    int before = 0, all = 0;
#pragma unroll
    for (int w = 0; w < Tile::kWarps; ++w) {
      if (w < warp()) before += labels.count_of_warp[w];
      all += labels.count_of_warp[w];
    }
    if (here) {
      const int to = before + __popc(in_warp & ((1u << lane()) - 1));
      labels.position[to] = u;
      labels.column[to] = column;
    }
    __syncthreads();
    return all;
  }

  __device__ __forceinline__ void write(int first) const {
    const T cotangent = of.cotangent();
    T blanks[kFramesAtOnce];
    bool used[kFramesAtOnce];
#pragma unroll
    for (int k = 0; k < kFramesAtOnce; ++k) {
      const int t = place.row + first + k;
      used[k] = use(t) != T(kUnused);
      blanks[k] = used[k] ? arcs_share() * of.workspace[of.layout.blank_of_frame + t] : T(0);
    }
#pragma unroll
    for (int k = 0; k < kFramesAtOnce; ++k) {
      const int t = place.row + first + k;
      if (t >= of.p.frames) return;
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const int v = place.column + c * kWarp + lane();
        if (v >= of.p.classes) continue;
        T counts = memory.sums[first + k][c * kWarp + lane()];
        if (v == of.p.blank_id) counts += blanks[k];
        In* to = static_cast<In*>(of.p.am_gradient) + (of.b * of.p.frames + t) * of.p.classes + v;
        narrow(used[k] ? cotangent * counts : T(0), *to);
      }
    }
  }
};

template <class In>
__global__ void __launch_bounds__(ProductTile<Accumulator<In>>::kThreads,
                                  ProductTile<Accumulator<In>>::kBlocks)
    factored_am_kernel(const FactoredBackward p, const FactoredLayout layout, const int frame_tiles,
                       const int class_tiles) {
  using T = Accumulator<In>;
  __shared__ typename ProductTile<T>::Memory memory;
  __shared__ typename FramesTile<In>::Labels labels;
  const TilePlace place = TilePlace::of<T>(blockIdx.x, frame_tiles, class_tiles);
  const FactoredUtterance<In> of(p, layout, place.outer);
  FramesTile<In>{of, place, memory, labels}.run();
}

// Of the split of the frames that begins with frame `begin`, those up to the last chunk with
// weights for a softmax at one of a tile's positions. All threads call it.
template <class In>
__device__ __forceinline__ int used_frames(const FactoredUtterance<In>& of, int64_t begin,
                                           int first_position) {
  using T = Accumulator<In>;
  const int u = first_position + int(threadIdx.x);
  const bool is_position = int(threadIdx.x) < ProductTile<T>::kColumns && u < of.positions();
  const int64_t rest = of.p.frames - begin;
  int64_t end = rest < of.layout.split_frames ? rest : of.layout.split_frames;
  while (end > 0) {
    const int64_t chunk = (begin + end - 1) / kChunkFrames;
    const T* uses = of.workspace + of.layout.use_of_chunk + chunk * of.layout.width;
    if (__syncthreads_or(is_position && uses[u] >= T(kSoftmax)) != 0) break;
    end = chunk * kChunkFrames - begin;
  }
  return int(end);
}

// Sums over a split of the frames of factor[t, u] exp(am[t, v] - top), by tiles of classes and
// label positions.
template <class In>
__global__ void __launch_bounds__(ProductTile<Accumulator<In>>::kThreads,
                                  ProductTile<Accumulator<In>>::kBlocks)
    factored_counts_kernel(const FactoredBackward p, const FactoredLayout layout,
                           const int class_tiles, const int position_tiles) {
  using T = Accumulator<In>;
  using Tile = ProductTile<T>;
  __shared__ typename Tile::Memory memory;
  const TilePlace place = TilePlace::of<T>(blockIdx.x, class_tiles, position_tiles);
  const int64_t b = place.outer / layout.splits, split = place.outer - b * layout.splits;
  const FactoredUtterance<In> of(p, layout, b);
  const int positions = of.positions();
  const int64_t begin = split * layout.split_frames;
  const int frames = used_frames(of, begin, place.column);
  const Plane<T> factors{of.workspace + layout.factors + begin * layout.width, frames, positions,
                         layout.width};
  const auto am = exponentials(of, of.am, layout.shift_of_frame, begin, frames);
  multiply<T>(frames, Stage<Tile::kRows, false, Exponentials<In>>(am, place.row),
              Stage<Tile::kColumns, false, Plane<T>>(factors, place.column), memory);
  T* const counts = of.workspace + layout.counts + split * layout.width * p.classes;
  for (int column = threadIdx.x / kWarp; column < Tile::kColumns; column += Tile::kWarps) {
    const int u = place.column + column;
    if (u >= positions) break;
    for (int row = threadIdx.x % kWarp; row < Tile::kRows; row += kWarp) {
      const int v = place.row + row;
      if (v < p.classes) counts[u * p.classes + v] = memory.sums[row][column];
    }
  }
}

// What a label position, or the average, has in cells without factors.
template <class In>
__device__ __forceinline__ Accumulator<In> inexact_counts(const FactoredUtterance<In>& of, int u,
                                                          int64_t v, Accumulator<In> score) {
  using T = Accumulator<In>;
  const T log_smallest = of.log_smallest();
  const T* uses = of.workspace + of.layout.use_of_chunk + u;
  T counts = 0;
  for (int64_t chunk = 0; chunk < of.layout.chunks; ++chunk) {
    if (uses[chunk * of.layout.width] != T(kInexact)) continue;
    const int64_t begin = chunk * kChunkFrames, rest = of.p.frames - begin;
    const int end = int(begin + (rest < kChunkFrames ? rest : kChunkFrames));
    for (int t = int(begin); t < end; ++t) {
      const auto term = of.is_average(u) ? of.term_of_average(t) : of.term_of_cell(t, u);
      if (!term.inexact(log_smallest)) continue;
      const T am = widen(of.am[t * of.p.classes + v]) - of.am_top[t];
      counts += term.weight * exp_nonpositive((am + score) - term.log);
    }
  }
  return counts;
}

// From these the gradient by `lm`, and by the average.
template <class In>
__global__ void __launch_bounds__(kRowThreads)
    factored_lm_kernel(const FactoredBackward p, const FactoredLayout layout,
                       const int blocks_of_row) {
  using T = Accumulator<In>;
  const int64_t row = blockIdx.x / blocks_of_row, b = row / layout.width;
  const int u = int(row - b * layout.width);
  const int64_t v = (blockIdx.x - row * blocks_of_row) * kRowThreads + threadIdx.x;
  const FactoredUtterance<In> of(p, layout, b);
  if (v >= p.classes || u >= of.positions()) return;
  const T use = of.workspace[layout.use_of_position + u];
  T gradient = 0;
  if (use >= T(kSoftmax) && v != excluded_class(p)) {
    const T score =
        of.is_average(u) ? of.average[v] : T(widen(of.lm[u * p.classes + v])) - of.lm_top[u];
    const T* counts = of.workspace + layout.counts + u * p.classes + v;
    T sum = 0;
    for (int64_t split = 0; split < layout.splits; ++split) {
      sum += counts[split * layout.width * p.classes];
    }
    gradient = sum * exp_nonpositive(score);
    if (use == T(kInexact)) gradient += inexact_counts(of, u, v, score);
  }
  if (of.is_average(u)) {
    gradient = use == T(kUnused) ? T(0) : of.cotangent() * gradient;
    static_cast<T*>(p.average_gradient)[b * p.classes + v] = gradient;
    return;
  }
  if (u < p.cells - 1 && v == clipped_label(p, b, u)) {
    gradient -= of.joint_share() * of.workspace[layout.label_of_position + u];
  }
  if (v == p.blank_id) gradient += of.joint_share() * of.workspace[layout.blank_of_position + u];
  gradient = use == T(kUnused) ? T(0) : of.cotangent() * gradient;
  const int64_t to = (b * p.cells + u) * p.classes + v;
  if (p.smoothing.used()) {
    static_cast<T*>(p.lm_gradient)[to] = gradient;
  } else {
    narrow(gradient, static_cast<In*>(p.lm_gradient)[to]);
  }
}

template <class In>
cudaError_t launch_factored_backward(const FactoredBackward& p, cudaStream_t stream) {
  using Tile = ProductTile<Accumulator<In>>;
  if (!countable<In>(p)) return cudaErrorInvalidValue;
  const FactoredLayout layout(p.frames, p.cells, p.classes);
  const Grid chunks{p.batch * layout.chunks, kWeightsThreads};
  cudaError_t status = launch(factored_weights_kernel<In>, chunks, stream, p, layout);
  if (status != cudaSuccess) return status;
  const Grid positions{tiles_of(p.batch * layout.width, kWeightsThreads), kWeightsThreads};
  status = launch(factored_positions_kernel<In>, positions, stream, p, layout);
  if (status != cudaSuccess) return status;

  const int64_t frame_tiles = tiles_of(p.frames, Tile::kRows);
  const int64_t class_columns = tiles_of(p.classes, Tile::kColumns);
  const Grid by_am{p.batch * frame_tiles * class_columns, Tile::kThreads};
  status = launch(factored_am_kernel<In>, by_am, stream, p, layout, int(frame_tiles),
                  int(class_columns));
  if (status != cudaSuccess) return status;

  // Without a softmax there are no factors.
  if (p.normalization != Normalization::kNone) {
    static_assert(sizeof(Accumulator<In>) == 8 ||
                  (Tile::kRows == kCountsTileRows && Tile::kColumns == kCountsTileColumns));
    const int64_t class_rows = tiles_of(p.classes, Tile::kRows);
    const int64_t position_columns =
        tiles_of(p.cells + (p.smoothing.used() ? 1 : 0), Tile::kColumns);
    const Grid by_lm{p.batch * layout.splits * class_rows * position_columns, Tile::kThreads};
    status = launch(factored_counts_kernel<In>, by_lm, stream, p, layout, int(class_rows),
                    int(position_columns));
    if (status != cudaSuccess) return status;
  }
  const int64_t blocks_of_row = tiles_of(p.classes, kRowThreads);
  const Grid rows{p.batch * layout.width * blocks_of_row, kRowThreads};
  return launch(factored_lm_kernel<In>, rows, stream, p, layout, int(blocks_of_row));
}

}  // namespace

cudaError_t factored_backward(const FactoredBackward& p, DType dtype, cudaStream_t stream) {
  switch (dtype) {
    case DType::kF32: return launch_factored_backward<float>(p, stream);
    case DType::kF64: return launch_factored_backward<double>(p, stream);
    case DType::kBF16: return launch_factored_backward<__nv_bfloat16>(p, stream);
    case DType::kF16: return launch_factored_backward<__half>(p, stream);
  }
  return cudaErrorInvalidValue;
}

int64_t factored_backward_elements(int64_t frames, int64_t cells, int64_t classes) {
  return FactoredLayout(frames, cells, classes).total;
}

}  // namespace jax_rnnt::cuda
