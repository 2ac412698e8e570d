// How the arcs kernels go over the rows of logits: a group of neighbouring lanes takes a row, each
// lane 16-byte vectors of it.
//
// Rows start anywhere, but vectors are aligned: what is left of a row in front of its first vector
// and behind the last one is dealt out by single elements. So nothing outside of the row is
// touched, and nothing has to be masked, whatever V is.
#pragma once

#include <cstring>

#include "cells.h"
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

// Lanes that share a row of V classes: so few that each has several vectors, since finding its row
// and finishing it takes a warp as many instructions as a dozen vectors. Eight lanes load 128
// consecutive bytes, as much as memory asks for; longer rows are shared by all to be done sooner.
template <class In>
int group_size(int64_t classes) {
  const int64_t vectors = (classes + kVectorSize<In> - 1) / kVectorSize<In>;
  if (vectors <= 4) return 1;
  if (vectors <= 8) return 2;
  if (vectors <= 16) return 4;
  if (vectors <= 256) return 8;
  return kWarp;
}

inline int64_t blocks_for_rows(int64_t rows, int group) {
  const int64_t rows_per_block = kRowThreads / group;
  return (rows + rows_per_block - 1) / rows_per_block;
}

// 16 bytes as loaded: elements are taken out where they are used. (An array of 16-bit elements is
// taken apart by the compiler as soon as it is loaded, so that the next load waits for this one.)
template <class In>
struct alignas(kVectorBytes) Vector {
  uint32_t word[4];
};

// A word of a vector is two elements of 16 bits.
__device__ __forceinline__ __nv_bfloat162 as_pair(uint32_t word, __nv_bfloat16) {
  __nv_bfloat162 pair;
  memcpy(&pair, &word, sizeof(word));
  return pair;
}
__device__ __forceinline__ __half2 as_pair(uint32_t word, __half) {
  __half2 pair;
  memcpy(&pair, &word, sizeof(word));
  return pair;
}
__device__ __forceinline__ float2 widen_pair(uint32_t word, __nv_bfloat16) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
__device__ __forceinline__ float2 widen_pair(uint32_t word, __half in) {
  return __half22float2(as_pair(word, in));
}
__device__ __forceinline__ __nv_bfloat162 narrow_pair(float x, float y, __nv_bfloat16) {
  return __floats2bfloat162_rn(x, y);
}
__device__ __forceinline__ __half2 narrow_pair(float x, float y, __half) {
  return __floats2half2_rn(x, y);
}

template <class In>
__device__ __forceinline__ void widen(const Vector<In>& v, Accumulator<In> (&x)[kVectorSize<In>]) {
  if constexpr (sizeof(In) == 2) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = widen_pair(v.word[j], In{});
      x[2 * j] = pair.x;
      x[2 * j + 1] = pair.y;
    }
  } else {
    memcpy(x, v.word, kVectorBytes);
  }
}

template <class In>
__device__ __forceinline__ void set_element(Vector<In>& v, int j, In element) {
  if constexpr (sizeof(In) == 2) {
    uint16_t bits;
    memcpy(&bits, &element, sizeof(In));
    uint32_t& word = v.word[j / 2];
    word = j % 2 == 0 ? (word & 0xffff0000u) | bits : (word & 0xffffu) | uint32_t(bits) << 16;
  } else {
    memcpy(&v.word[j * int(sizeof(In)) / 4], &element, sizeof(In));
  }
}

template <class In>
__device__ __forceinline__ Vector<In> load_vector(const In* from) {
  const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(from));
  return {{raw.x, raw.y, raw.z, raw.w}};
}

// Writes neighbouring elements, 16 bytes of them or 8, which are a vector of a wider dtype.
template <class Out, int kSize>
__device__ __forceinline__ void store_elements(Out* to, const Accumulator<Out> (&x)[kSize]) {
  constexpr int kBytes = kSize * int(sizeof(Out));
  static_assert(kBytes == kVectorBytes || kBytes == kVectorBytes / 2);
  uint32_t word[kBytes / 4];
  if constexpr (sizeof(Out) == 2) {
#pragma unroll
    for (int j = 0; j < kSize / 2; ++j) {
      const auto pair = narrow_pair(x[2 * j], x[2 * j + 1], Out{});
      memcpy(&word[j], &pair, sizeof(pair));
    }
  } else {
    memcpy(word, x, kBytes);
  }
  if constexpr (kBytes == kVectorBytes) {
    __stcs(reinterpret_cast<uint4*>(to), uint4{word[0], word[1], word[2], word[3]});
  } else {
    // What is narrower than the logits is read soon: it may stay in the cache.
    *reinterpret_cast<uint2*>(to) = uint2{word[0], word[1]};
  }
}

// How a row divides into aligned vectors, and less than a vector of single elements at each end.
template <class In>
struct RowParts {
  int head, vectors, singles;  // `head` of the single elements are in front of the vectors

  __device__ __forceinline__ RowParts(const In* row, int classes) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(row);
    head = smaller(int(-address % kVectorBytes / sizeof(In)), classes);
    vectors = int(unsigned(classes - head) / kVectorSize<In>);
    singles = classes - vectors * kVectorSize<In>;
  }

  // Classes: the first of a vector, and that of a single element.
  __device__ __forceinline__ int class_of_vector(int vector) const {
    return head + vector * kVectorSize<In>;
  }
  __device__ __forceinline__ int class_of_single(int single) const {
    return single < head ? single : single + vectors * kVectorSize<In>;
  }
};

// Single elements of a row that one lane of a group has, at most.
template <class In, int kGroup>
inline constexpr int kMostSingles = (2 * kVectorSize<In> - 2 + kGroup - 1) / kGroup;

// Of `all` things that are dealt out to the lanes of a group, how many this one has.
template <int kGroup>
__device__ __forceinline__ int share_of_lane(int all, int lane) {
  return int(unsigned(all - lane + kGroup - 1) / kGroup);
}

// Vectors of a row that a group loads at a time.
template <int kGroup>
inline constexpr int kStep = kGroup * kVectorsInFlight;

// How many of its vectors are in full steps.
template <int kGroup>
__device__ __forceinline__ int vectors_in_steps(int vectors) {
  return int(unsigned(vectors) / kStep<kGroup> * kStep<kGroup>);
}

// So that no class of a vector that some lane might have had is out of range.
template <class In>
inline constexpr int64_t kMostClasses = INT32_MAX - kStep<kWarp> * kVectorSize<In>;

// What a lane has loaded of a row before it uses any of it.
//
// A row is loaded in full steps, but what these leave of it comes first: the loads of a short row
// are then on their way before there is anything to wait for.
template <class In, int kGroup>
struct Loaded {
  Vector<In> vectors[kVectorsInFlight];
  In singles[kMostSingles<In, kGroup>];
  int vectors_here, singles_here;

  // A full step, from vector `begin` of the row on.
  __device__ __forceinline__ void load_step(const In* row, const RowParts<In>& parts, int begin,
                                            int lane) {
    const In* from = row + parts.class_of_vector(begin + lane);
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      vectors[k] = load_vector(from + k * kGroup * kVectorSize<In>);
    }
    vectors_here = kVectorsInFlight;
    singles_here = 0;
  }
  // The vectors from `begin` on, less than a step, and the single elements.
  __device__ __forceinline__ void load_rest(const In* row, const RowParts<In>& parts, int begin,
                                            int lane) {
    const In* from = row + parts.class_of_vector(begin + lane);
    vectors_here = share_of_lane<kGroup>(parts.vectors - begin, lane);
    singles_here = share_of_lane<kGroup>(parts.singles, lane);
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      if (k >= vectors_here) break;
      vectors[k] = load_vector(from + k * kGroup * kVectorSize<In>);
    }
#pragma unroll
    for (int k = 0; k < kMostSingles<In, kGroup>; ++k) {
      if (k >= singles_here) break;
      singles[k] = row[parts.class_of_single(k * kGroup + lane)];
    }
  }
};

}  // namespace jax_rnnt::cuda
