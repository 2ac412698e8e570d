// Where the gradients of the additive joiner keep what, in one utterance's workspace. Counted in
// elements of float or double.
#pragma once

#include "lattice_layout.h"

namespace jax_rnnt::cuda {

// Frames whose weights a block sums.
inline constexpr int kChunkFrames = 64;
// Sums over all frames are divided into as many parts as make so many blocks an utterance, of no
// fewer frames each.
inline constexpr int64_t kBlocksOfUtterance = 32;
inline constexpr int64_t kFewestSplitFrames = 128;

struct FactoredLayout {
  // "Positions" of the label, and with smoothed arcs one more, for the average.
  int64_t positions;
  int64_t chunks;                // of frames
  int64_t splits, split_frames;  // of the sums over all frames

  int64_t factors;                                       // (T, positions)
  int64_t use_of_frame, shift_of_frame;                  // (T,)
  int64_t blank_of_frame, softmax_of_frame;              // (T,)
  int64_t use_of_position, shift_of_position;            // (positions,)
  int64_t blank_of_position, label_of_position;          // (positions,)
  int64_t use_of_chunk, blank_of_chunk, label_of_chunk;  // (chunks, positions)
  int64_t counts;                                        // (splits, positions, V)
  int64_t total;

  FactoredLayout(int64_t frames, int64_t cells, int64_t classes, bool smoothed)
      : positions(cells + (smoothed ? 1 : 0)), chunks((frames + kChunkFrames - 1) / kChunkFrames) {
    // Of products of single precision; those of double have smaller ones.
    constexpr int64_t kTileClasses = 128, kTilePositions = 64;
    const int64_t tiles = ((classes + kTileClasses - 1) / kTileClasses) *
                          ((positions + kTilePositions - 1) / kTilePositions);
    const int64_t most = (frames + kFewestSplitFrames - 1) / kFewestSplitFrames;
    const int64_t wanted = (kBlocksOfUtterance + tiles - 1) / tiles;
    splits = wanted < most ? wanted : most;
    if (splits < 1) splits = 1;
    split_frames = (frames + splits - 1) / splits;
    int64_t end = 0;
    const auto take = [&end](int64_t count) {
      const int64_t begin = end;
      end += count;
      return begin;
    };
    factors = take(frames * positions);
    use_of_frame = take(frames);
    shift_of_frame = take(frames);
    blank_of_frame = take(frames);
    softmax_of_frame = take(frames);
    use_of_position = take(positions);
    shift_of_position = take(positions);
    blank_of_position = take(positions);
    label_of_position = take(positions);
    use_of_chunk = take(chunks * positions);
    blank_of_chunk = take(chunks * positions);
    label_of_chunk = take(chunks * positions);
    counts = take(splits * positions * classes);
    total = end;
  }
};

}  // namespace jax_rnnt::cuda
