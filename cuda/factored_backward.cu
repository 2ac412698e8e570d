// Gradients of the additive joiner's halves, from those of its arcs. With w[t, u] the weight that a
// cell's softmax has,
//
//   factor[t, u] = w[t, u] exp(-denominator[t, u]),
//   counts by am[t, v] = exp(am[t, v] - top) sum_u factor[t, u] exp(lm[u, v] - top),
//
// and likewise by lm, summed over t: two products. Smoothed, the sum over u has one more term, with
// the weight of the frame and the average in the place of lm[u]. Cells whose sum of products was
// too small have no factor; their terms are added one by one.
#include "factored_am_gradient.h"
#include "launch.h"

namespace jax_rnnt::cuda {
namespace {

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
  const auto am = of.exponentials(of.am, layout.shift_of_frame, begin, frames);
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
