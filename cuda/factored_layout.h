// Where the gradients of the additive joiner keep what, in one utterance's workspace. Counted in
// elements of float or double.
#pragma once

#include <cstdint>

namespace jax_rnnt::cuda {

// Frames whose weights a block sums.
inline constexpr int kChunkFrames = 64;
// The sums over all frames are divided into parts of whole chunks, so many that an utterance has
// about as many blocks, but not of fewer frames each.
inline constexpr int64_t kBlocksOfUtterance = 32;
inline constexpr int64_t kFewestSplitFrames = 2 * kChunkFrames;
// Tiles of those sums, in single precision: classes, label positions.
inline constexpr int64_t kCountsTileRows = 128, kCountsTileColumns = 64;

inline int64_t tiles_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

struct FactoredLayout {
  int64_t width;                 // of a row of label positions, with one for the average
  int64_t chunks;                // of frames
  int64_t splits, split_frames;  // of the sums over all frames

  int64_t factors;                                       // (T, width)
  int64_t use_of_frame, shift_of_frame;                  // (T,)
  int64_t blank_of_frame, softmax_of_frame;              // (T,)
  int64_t use_of_position, shift_of_position;            // (width,)
  int64_t blank_of_position, label_of_position;          // (width,)
  int64_t use_of_chunk, blank_of_chunk, label_of_chunk;  // (chunks, width)
  int64_t counts;                                        // (splits, width, V)
  int64_t total;

  // The same whether arcs are smoothed or not: a workspace is asked for without saying so.
  FactoredLayout(int64_t frames, int64_t cells, int64_t classes)
      : width(cells + 1), chunks(tiles_of(frames, kChunkFrames)) {
    const int64_t tiles = tiles_of(classes, kCountsTileRows) * tiles_of(width, kCountsTileColumns);
    const int64_t most = frames / kFewestSplitFrames;
    const int64_t wanted = tiles_of(kBlocksOfUtterance, tiles);
    const int64_t parts = wanted < most ? wanted : most > 0 ? most : 1;
    const int64_t split_chunks = chunks > 0 ? tiles_of(chunks, parts) : 1;
    splits = chunks > 0 ? tiles_of(chunks, split_chunks) : 1;
    split_frames = split_chunks * kChunkFrames;
    int64_t end = 0;
    const auto take = [&end](int64_t count) {
      const int64_t begin = end;
      end += count;
      return begin;
    };
    factors = take(frames * width);
    use_of_frame = take(frames);
    shift_of_frame = take(frames);
    blank_of_frame = take(frames);
    softmax_of_frame = take(frames);
    use_of_position = take(width);
    shift_of_position = take(width);
    blank_of_position = take(width);
    label_of_position = take(width);
    use_of_chunk = take(chunks * width);
    blank_of_chunk = take(chunks * width);
    label_of_chunk = take(chunks * width);
    counts = take(splits * width * classes);
    total = end;
  }
};

}  // namespace jax_rnnt::cuda
