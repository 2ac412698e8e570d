// Where the banded lattice kernel keeps what, in the workspace of the utterances that it takes at
// once, one a lane. Counted in elements of float or double; integers have the same size.
#pragma once

#include <cstdint>

namespace jax_rnnt {

constexpr int64_t kBandedBlock = 16;     // frames in a tile, a multiple of the lanes
constexpr int64_t kBandedMaxLanes = 16;  // no vector has more

// Rows of the alphas have one element for each utterance, which may be fewer than there are lanes:
// what a store of all lanes spills is overwritten by the next row, or ends in padding.
struct BandedLayout {
  int64_t corridor_rows;  // of each utterance: kCorridorRows rows of T elements
  int64_t alpha_mantissa, alpha_exponent, alpha_shift;
  int64_t blank_tile, label_tile, corridor_tile;
  int64_t slots;  // four rows of S + 1 vectors: mantissa and exponent, twice
  int64_t total;
};

constexpr int64_t kCorridorRows = 5;

// Static: each instruction set compiles its own copy. What utterances need together is at most
// their number times what one needs alone.
static inline BandedLayout banded_layout(int64_t utterances, int64_t frames, int64_t cells,
                                         bool with_posteriors) {
  const int64_t kept = with_posteriors ? frames * utterances : 0;
  BandedLayout layout{};
  int64_t end = 0;
  const auto place = [&end](int64_t elements) {
    const int64_t begin = end;
    end += elements;
    return begin;
  };
  layout.corridor_rows = place(utterances * kCorridorRows * frames);
  layout.alpha_mantissa = place(kept * cells + kBandedMaxLanes);
  layout.alpha_exponent = place(kept * cells + kBandedMaxLanes);
  layout.alpha_shift = place(kept + kBandedMaxLanes);
  layout.blank_tile = place(kBandedBlock * cells * kBandedMaxLanes);
  layout.label_tile = place(kBandedBlock * cells * kBandedMaxLanes);
  layout.corridor_tile = place(kCorridorRows * kBandedBlock * kBandedMaxLanes);
  layout.slots = place(4 * (cells + 1) * kBandedMaxLanes);
  layout.total = end;
  return layout;
}

}  // namespace jax_rnnt
