// The CPU kernels' interface. It knows nothing of XLA, and nothing of instruction sets: each one
// (see dispatch.h) fills a `Kernels` table with its own compilation of the same source.
//
// Letters: T frames, U labels, W = U + 1 cells a frame, V classes. All arrays are dense, row-major.
#pragma once

#include <cstdint>

// The CUDA kernels take the same structs.
#ifdef __CUDACC__
#define JAX_RNNT_HOST_DEVICE __host__ __device__
#else
#define JAX_RNNT_HOST_DEVICE
#endif
// Always inlined: a copy shared between instruction sets could be compiled for the wrong one.
#define JAX_RNNT_MEMBER __attribute__((always_inline)) JAX_RNNT_HOST_DEVICE

namespace jax_rnnt {

enum class DType { kF32, kF64, kBF16, kF16 };

inline constexpr double kForbidden = -1e7;  // log-probabilities below count as -inf
inline constexpr double kExcessive = 1e6;   // log-probabilities above are bad input

// How scores become arc log-probabilities.
enum class Normalization : int64_t {
  kSoftmax = 0,  // log-softmax over the classes
  kNone = 1,     // scores already are log-probabilities
  kHat = 2,      // sigmoid for blank, softmax over the other classes (arXiv 2003.07705)
};

// Regular: a label arc stays in its frame. Modified and constrained: every arc takes one frame.
enum class Topology : int64_t { kRegular = 0, kModified = 1, kConstrained = 2 };

// Frames [frame_begin, frame_end) and labels [label_begin, label_end) of one utterance.
// Out-of-range values mark an utterance with bad input: its log-likelihood is NaN and nothing of it
// is read.
struct Bounds {
  int32_t frame_begin, frame_end, label_begin, label_end;

  JAX_RNNT_MEMBER bool valid(int64_t frames, int64_t labels) const {
    return 0 <= frame_begin && frame_begin <= frame_end && frame_end <= frames &&
           0 <= label_begin && label_begin <= label_end && label_end <= labels;
  }
};

// Scores to arcs, for one batch. "Planes" are (batch, T, W), float, or double for double logits.
//
// An utterance has L labels: L = W - 1 where the last cell of a frame has no label arc, or L = W
// where all have one: the cells are then a band, which ends before the labels do.
struct ArcsForward {
  int64_t batch, frames, cells, labels_per_utterance, classes;
  int64_t blank_id;
  Normalization normalization;
  const void* logits;     // (batch, T, W, V)
  const int32_t* labels;  // (batch, L)
  const Bounds* bounds;   // (batch,)
  void* blank;            // plane, log p(blank); -inf outside the bounds
  void* label;         // plane, log p(label u); -inf outside the bounds and in cells >= label_end
  void* denominators;  // plane, log of the sum over the classes that the softmax runs over
};

// Arc weights to the gradient of the scores. A cell whose two weights are 0 gets an exact 0, and
// its row of logits is not read.
struct ArcsBackward {
  int64_t batch, frames, cells, labels_per_utterance, classes;
  int64_t blank_id;
  Normalization normalization;
  double clamp;  // bound on each element before the cotangent is applied; <= 0 is off
  const void* logits;
  const int32_t* labels;
  const void* denominators;
  const void* blank_weights;  // plane, d log-likelihood / d blank arc
  const void* label_weights;  // plane
  const void* cotangents;     // (batch,), of the loss
  void* gradient;             // of the logits' shape; may be in their memory
  DType gradient_dtype;       // the logits', or one of 16 bits if that is float
};

// What makes smoothed arcs of those of the additive joiner, log P[t, u, v]: they are
//
//   joint_share log P[t, u, v] + am_share (am[t, v] - log sum_k exp(am[t, k] + average[k])) +
//   scores[u, v].
struct Smoothing {
  double joint_share = 1, am_share = 0;
  const void* average = nullptr;  // (batch, V), logarithms of probabilities; null: not smoothed
  void* encoder_logs = nullptr;   // (batch, T): log sum_v exp(am[t, v] - am_top[t] + average[v])

  JAX_RNNT_MEMBER bool used() const { return average != nullptr; }
};

// Arcs of the additive joiner, whose logits are am[t] + lm[u], for one batch. Scores are relative
// to the largest of their row, which the tops are: 0 for a row of all -inf, NaN where one is +inf.
struct FactoredForward {
  int64_t batch, frames, cells, classes;
  int64_t blank_id;
  Normalization normalization;
  const void* am;         // (batch, T, V)
  const void* lm;         // (batch, W, V)
  const int32_t* labels;  // (batch, W - 1)
  const Bounds* bounds;   // (batch,)
  void* blank;            // plane, as in ArcsForward
  void* label;
  void* denominators;  // plane, log of the sum of relative scores; 0 outside the bounds
  void* am_top;        // (batch, T)
  void* lm_top;        // (batch, W)
  void* workspace;     // (batch, workspace_elements)
  int64_t workspace_elements;
  Smoothing smoothing = {};
  // (batch, W): smoothed arcs' scores of the label positions.
  const void *blank_scores, *label_scores;
};

// Arc weights to the gradients of both halves. Frames and label positions all of whose weights are
// 0 get exact zeros, whatever their rows of scores hold. Smoothed, utterances whose cotangent is
// 0 do so, too.
struct FactoredBackward {
  int64_t batch, frames, cells, classes;
  int64_t blank_id;
  Normalization normalization;
  const void* am;
  const void* lm;
  const int32_t* labels;
  const void* denominators;
  const void* am_top;
  const void* lm_top;
  const void* blank_weights;  // plane, d log-likelihood / d blank arc
  const void* label_weights;  // plane
  const void* cotangents;     // (batch,), of the loss
  void* am_gradient;          // as am
  void* lm_gradient;          // as lm; smoothed, in the accumulator's dtype, and of log P alone
  void* workspace;            // (batch, workspace_elements)
  int64_t workspace_elements;
  Smoothing smoothing = {};
  void* average_gradient;                       // (batch, V), of the softmax alone
  void *blank_of_position, *label_of_position;  // (batch, W): sums of the weights over the frames
};

// Packed rows: instead of a plane of its own, each of a number of utterances has as many of a
// plane's N rows as it has cells, (frame_end, label_end + 1), one utterance after another. It has
// `per_row` elements of workspace for each row, and `per_utterance` besides.
struct PackedRows {
  bool used;                         // else planes of (T, W), and nothing of this counts
  int64_t planes, rows, utterances;  // N rows a plane, and so many utterances
  const int32_t* offsets;            // (batch,), an utterance's first row
  int64_t per_row, per_utterance;

  // Cells from one frame of an utterance to the next.
  JAX_RNNT_MEMBER int64_t stride(const Bounds& of) const { return int64_t(of.label_end) + 1; }
  // Whether there are all rows of an utterance with these valid bounds.
  JAX_RNNT_MEMBER bool has_all(int64_t b, const Bounds& of) const {
    const int64_t offset = offsets[b];
    return 0 <= offset && of.frame_end * stride(of) <= rows - offset;
  }
  JAX_RNNT_MEMBER int64_t first_cell(int64_t b) const { return plane(b) * rows + offsets[b]; }
  // A division of 64 bits would take many of a GPU's registers.
  JAX_RNNT_MEMBER int64_t plane(int64_t b) const { return uint32_t(b) / uint32_t(utterances); }
  JAX_RNNT_MEMBER int64_t place_in_plane(int64_t b) const { return b - plane(b) * utterances; }
};

// The recursion over arcs, for one batch.
struct Lattice {
  int64_t batch, frames, cells;  // packed rows: no utterance has more cells a frame, or N frames
  PackedRows packed;
  Topology topology;
  bool final_blank;        // modified: the last frame has a blank arc only
  double delay_penalty;    // added to label arcs, times (frame_end - 1) / 2 - t
  const void* blank;       // plane
  const void* label;       // plane
  const Bounds* bounds;    // (batch,)
  void* log_likelihood;    // (batch,)
  void* blank_posteriors;  // plane, or null when only the log-likelihood is wanted
  void* label_posteriors;
  void* workspace;  // (batch, workspace_elements); packed rows: (batch / utterances, same)
  int64_t workspace_elements;

  // Cells from one frame of an utterance to the next.
  JAX_RNNT_MEMBER int64_t stride(const Bounds& of) const {
    return !packed.used ? cells : packed.stride(of);
  }
  // Whether the utterance lies within the planes; if so, where its cells and workspace begin.
  JAX_RNNT_MEMBER bool valid(int64_t b) const {
    const Bounds& of = bounds[b];
    return of.valid(frames, cells - 1) && (!packed.used || packed.has_all(b, of));
  }
  JAX_RNNT_MEMBER int64_t first_cell(int64_t b) const {
    return !packed.used ? b * frames * cells : packed.first_cell(b);
  }
  JAX_RNNT_MEMBER int64_t first_workspace_element(int64_t b) const {
    if (!packed.used) return b * workspace_elements;
    return packed.plane(b) * workspace_elements + packed.offsets[b] * packed.per_row +
           packed.place_in_plane(b) * packed.per_utterance;
  }
};

// Steps of one utterance's lattice, which different threads may take: the two inward ones at the
// same time, and after both, the two outward ones at the same time.
enum class LatticeStep { kFirstInward, kSecondInward, kFirstOutward, kSecondOutward };

// The recursion over the arcs of a band, for one batch: the S cells of frame t are those of label
// positions starts[t] to starts[t] + S - 1, and no path leaves them. A path moves
//   by blank (t, u)    to (t + 1, u),
//   by label (t, u)    to (t, u + 1)      regular
//                      to (t + 1, u + 1)  modified, constrained
// if the cell that it comes to is in the band of its frame; a node (frame_end, label_end), where
// paths end, always is. A constrained label arc also has the blank arc of cell (t, u + 1), which
// must be in the band. "Planes" are (batch, T, S). Without a path, the log-likelihood is -inf.
struct BandedLattice {
  int64_t batch, frames, cells;  // cells is S
  int64_t labels;                // no label_end is larger
  Topology topology;
  double delay_penalty;    // as for Lattice
  const void* blank;       // plane
  const void* label;       // plane
  const int32_t* starts;   // (batch, T), any values: those outside the bounds do not count
  const Bounds* bounds;    // (batch,)
  void* log_likelihood;    // (batch,)
  void* blank_posteriors;  // plane, or null when only the log-likelihood is wanted
  void* label_posteriors;
  void* workspace;  // (batch, workspace_elements)
  int64_t workspace_elements;
};

// Frames that an arc may take, in increasing order.
struct Durations {
  static constexpr int kLongest = 62;  // their set is the bits of an attribute
  int number;
  int8_t frames[kLongest + 1];
  bool labels_stay;  // a label arc may take no frame but its own, whatever blanks may

  static Durations of_bits(uint64_t bits) {
    Durations durations{};
    for (int d = 0; d <= kLongest; ++d) {
      if (bits >> d & 1) durations.frames[durations.number++] = int8_t(d);
    }
    return durations;
  }
  JAX_RNNT_MEMBER int longest() const { return frames[number - 1]; }
  JAX_RNNT_MEMBER bool labels_take(int duration) const { return duration == 0 || !labels_stay; }
};

// The recursion over arcs with durations, for one batch (arXiv 2304.06795). A path moves
//   by blank (t, u) to (t + d, u) for a duration d > 0,
//   by label (t, u) to (t + d, u + 1) for a duration d >= 0, or for d = 0 alone
// with the log-probability of the arc plus that of the duration. It ends with a blank that comes to
// (frame_end, label_end); all other nodes are of frames before the end.
struct DurationLattice {
  int64_t batch, frames, cells;
  Durations durations;        // D of them
  const void* blank;          // plane
  const void* label;          // plane
  const void* duration;       // (batch, D, T, W), log-probabilities of the durations
  const Bounds* bounds;       // (batch,)
  void* log_likelihood;       // (batch,)
  void* blank_posteriors;     // plane, or null when only the log-likelihood is wanted
  void* label_posteriors;     // plane
  void* duration_posteriors;  // (batch, D, T, W), of both arcs
  void* workspace;            // (batch, workspace_elements)
  int64_t workspace_elements;
};

// The best path through the same arcs: its score, and the frame and the duration of each label.
struct BestDurationPath {
  DurationLattice lattice;  // its log_likelihood is the score, its workspace a plane
  uint8_t* arrivals;        // plane, workspace, too
  int32_t* label_frames;    // (batch, U), -1 where there is none
  int32_t* label_durations;
};

// The best path through a band: its score, and the frame of each label. Of equally good paths it is
// the one whose labels all come first. A whole lattice is a band of U + 1 cells that starts at 0.
//
// Packed rows are whole lattices without starts, which have N for frames. In the workspace of a
// plane, there are `per_utterance` elements for each utterance, then a byte for each row.
struct BestPath {
  BandedLattice band;  // its log_likelihood is the score of the best path
  PackedRows packed;
  bool final_blank;       // modified: the last frame has a blank arc only
  int32_t* label_frames;  // (batch, labels), -1 where there is none

  JAX_RNNT_MEMBER bool valid(int64_t b) const {
    const Bounds& of = band.bounds[b];
    return of.valid(band.frames, band.labels) && (!packed.used || packed.has_all(b, of));
  }
  // Cells of a frame.
  JAX_RNNT_MEMBER int64_t cells(const Bounds& of) const {
    return packed.used ? packed.stride(of) : band.cells;
  }
  JAX_RNNT_MEMBER int64_t first_cell(int64_t b) const {
    return packed.used ? packed.first_cell(b) : b * band.frames * band.cells;
  }
  template <class T>
  JAX_RNNT_MEMBER T* workspace(int64_t b) const {
    T* all = static_cast<T*>(band.workspace);
    if (!packed.used) return all + b * band.workspace_elements;
    return all + packed.plane(b) * band.workspace_elements +
           packed.place_in_plane(b) * packed.per_utterance;
  }
  // The bytes of an utterance's packed rows.
  template <class T>
  JAX_RNNT_MEMBER uint8_t* row_bytes(int64_t b) const {
    T* plane = static_cast<T*>(band.workspace) + packed.plane(b) * band.workspace_elements;
    return reinterpret_cast<uint8_t*>(plane + packed.utterances * packed.per_utterance) +
           packed.offsets[b];
  }
};

// Sums of rows by their numbers, each in the order of the rows; those of no sum's number are left
// out. A sum of no rows is 0.
struct RowSums {
  int64_t batch, rows, columns, sums_per_batch;
  const void* values;      // (batch, rows, columns)
  const int32_t* numbers;  // (batch, rows)
  void* sums;              // (batch, sums_per_batch, columns), rounded once
};

#undef JAX_RNNT_MEMBER

// Elements of float (double) that one utterance needs as workspace.
int64_t lattice_workspace_elements(int64_t frames, int64_t cells, Topology topology,
                                   bool with_posteriors);
int64_t banded_workspace_elements(int64_t frames, int64_t cells, bool with_posteriors);
int64_t duration_workspace_elements(int64_t frames, int64_t cells, const Durations& durations);
int64_t best_path_workspace_elements(int64_t frames, int64_t cells, int64_t element_bytes);
int64_t factored_forward_elements(int64_t cells, int64_t classes);
int64_t factored_backward_elements(int64_t frames, int64_t cells, int64_t classes,
                                   int64_t element_bytes);

// Likewise of utterances in packed rows, none of which has more cells a frame.
struct PackedWorkspace {
  int64_t per_row, per_utterance;
};
PackedWorkspace packed_workspace(int64_t cells, bool with_posteriors);
int64_t packed_best_path_elements(int64_t cells);  // of an utterance, beside the rows' bytes

// Work comes in items that any thread may take: (utterance, frame) pairs for arcs, utterances for
// the lattice and the best path, for the banded lattice as many utterances as a vector has lanes,
// sums for sums of rows.
// The additive joiner has two functions each way, one to be done before the other: for blocks of
// kPositions label positions, then of kFramesOfBlock frames; for utterances, then for blocks of
// classes (factored_layout.h). Each function does the items [begin, end).
//
// An utterance's lattice can also be shared out among two threads, step by step.
struct Kernels {
  const char* name;
  int64_t vector_bytes;
  void (*arcs_forward)(const ArcsForward&, DType, int64_t begin, int64_t end);
  void (*arcs_backward)(const ArcsBackward&, DType, int64_t begin, int64_t end);
  void (*lattice)(const Lattice&, DType, int64_t begin, int64_t end);
  void (*lattice_step)(const Lattice&, DType, int64_t utterance, LatticeStep);
  void (*banded_lattice)(const BandedLattice&, DType, int64_t begin, int64_t end);
  void (*duration_lattice)(const DurationLattice&, DType, int64_t begin, int64_t end);
  void (*best_path)(const BestPath&, DType, int64_t begin, int64_t end);
  void (*best_duration_path)(const BestDurationPath&, DType, int64_t begin, int64_t end);
  void (*factored_positions)(const FactoredForward&, DType, int64_t begin, int64_t end);
  void (*factored_frames)(const FactoredForward&, DType, int64_t begin, int64_t end);
  void (*factored_sums)(const FactoredBackward&, DType, int64_t begin, int64_t end);
  void (*factored_classes)(const FactoredBackward&, DType, int64_t begin, int64_t end);
  void (*row_sums)(const RowSums&, DType, int64_t begin, int64_t end);
};

}  // namespace jax_rnnt
