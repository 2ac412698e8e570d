// Fixed-width vectors and what moves and combines their lanes, on GCC/Clang vector extensions.
//
// This header is compiled once per instruction set (see kernels_target.cc), each time inside its
// own namespace. It includes no standard C++ header: an inline function of the standard library
// compiled here with AVX-512 could be the copy that the linker keeps for the whole extension. (The
// compiler's intrinsics are always inlined.)
#pragma once

#include <cstdint>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#ifndef JAX_RNNT_TARGET
#error "define JAX_RNNT_TARGET and JAX_RNNT_VECTOR_BYTES before including simd.h"
#endif

namespace jax_rnnt::JAX_RNNT_TARGET {

template <class T>
struct Traits;

template <>
struct Traits<float> {
  using Int = int32_t;
  typedef float Vec __attribute__((vector_size(JAX_RNNT_VECTOR_BYTES)));
  typedef int32_t IntVec __attribute__((vector_size(JAX_RNNT_VECTOR_BYTES)));
  static constexpr int kMantissaBits = 23;
  static constexpr Int kExponentBias = 127;
  static constexpr float kRoundingMagic =
      12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693359375f;  // 10 significant bits: n * kLn2High is exact
  static constexpr float kLn2Low = -2.1219444005469058e-4f;
  // That again in two parts, the first of 9 significant bits.
  static constexpr float kLn2Middle = -0x1.bdp-13f, kLn2Rest = -1.90465430e-9f;
  static constexpr float kLowest = -3.402823466e38f;
};

template <>
struct Traits<double> {
  using Int = int64_t;
  typedef double Vec __attribute__((vector_size(JAX_RNNT_VECTOR_BYTES)));
  typedef int64_t IntVec __attribute__((vector_size(JAX_RNNT_VECTOR_BYTES)));
  static constexpr int kMantissaBits = 52;
  static constexpr Int kExponentBias = 1023;
  static constexpr double kRoundingMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLog2e = 1.44269504088896341;
  static constexpr double kLn2High = 0x1.62e42fee00000p-1;  // 32 bits: n * kLn2High is exact
  static constexpr double kLn2Low = 1.9082149292705877e-10;
  static constexpr double kLowest = -1.7976931348623157e308;
};

template <class T>
using Vec = typename Traits<T>::Vec;
template <class T>
using IntVec = typename Traits<T>::IntVec;
template <class T>
using Int = typename Traits<T>::Int;

template <class T>
constexpr int kLanes = JAX_RNNT_VECTOR_BYTES / sizeof(T);

#define JAX_RNNT_INLINE_MEMBER inline __attribute__((always_inline))
#define JAX_RNNT_INLINE static JAX_RNNT_INLINE_MEMBER

template <class V, class P>
JAX_RNNT_INLINE V load(const P* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class V, class P>
JAX_RNNT_INLINE void store(P* p, V v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// Starts to read ahead: while exponentials are computed, the processor's own prefetching stops. The
// address, `elements` after p, may be past the end of all.
// kLocality 3 is for the first cache, 2 for the second.
template <int kLocality = 3, class P>
JAX_RNNT_INLINE void prefetch(const P* p, int64_t elements) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p) + elements * int64_t(sizeof(P));
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, kLocality);
}

template <class To, class From>
JAX_RNNT_INLINE To bits(From x) {
  return __builtin_bit_cast(To, x);
}

// The nearest integers to floats that an int32 can hold.
JAX_RNNT_INLINE IntVec<float> nearest(Vec<float> x) {
#if defined(__AVX512F__) && JAX_RNNT_VECTOR_BYTES == 64
  // Without a mask, GCC 12 takes what this begins with for an uninitialised variable.
  return bits<IntVec<float>>(_mm512_maskz_cvtps_epi32(0xffff, bits<__m512>(x)));
#elif defined(__AVX__) && JAX_RNNT_VECTOR_BYTES == 32
  return bits<IntVec<float>>(_mm256_cvtps_epi32(bits<__m256>(x)));
#elif defined(__SSE2__) && JAX_RNNT_VECTOR_BYTES == 16
  return bits<IntVec<float>>(_mm_cvtps_epi32(bits<__m128>(x)));
#else
  // From 2^23 on all floats are integers, and adding a half would be rounded itself.
  const Vec<float> magnitude = x < 0 ? -x : x;
  const Vec<float> half = x < 0 ? Vec<float>{} - 0.5f : Vec<float>{} + 0.5f;
  return __builtin_convertvector(magnitude < 0x1p23f ? x + half : x, IntVec<float>);
#endif
}

// GCC's AddressSanitizer does not see what masked instructions touch: with it, there are none.
#if defined(__AVX512F__) && JAX_RNNT_VECTOR_BYTES == 64 && !defined(__SANITIZE_ADDRESS__)
#define JAX_RNNT_MASKED_LANES
#endif

// The tests' builds stop at lanes that there are not, of which a mask would make any others.
template <class T>
JAX_RNNT_INLINE void check_lanes([[maybe_unused]] int begin, [[maybe_unused]] int end) {
#ifdef __SANITIZE_ADDRESS__
  if (begin < 0 || end < begin || end > kLanes<T>) __builtin_trap();
#endif
}

// Lanes [begin, end) of the vector at p; what lies outside of them is not touched. Others are
// `other`.
template <class T>
JAX_RNNT_INLINE Vec<T> load_some(const T* p, int begin, int end, T other) {
  check_lanes<T>(begin, end);
  Vec<T> v = Vec<T>{} + other;
#ifdef JAX_RNNT_MASKED_LANES
  const uint32_t mask = (1u << end) - (1u << begin);
  if constexpr (sizeof(T) == 4) {
    return bits<Vec<T>>(_mm512_mask_loadu_ps(bits<__m512>(v), __mmask16(mask), p));
  } else {
    return bits<Vec<T>>(_mm512_mask_loadu_pd(bits<__m512d>(v), __mmask8(mask), p));
  }
#else
  if (end - begin == kLanes<T>) return load<Vec<T>>(p);
  for (int i = begin; i < end; ++i) v[i] = p[i];
  return v;
#endif
}

template <class T>
JAX_RNNT_INLINE void store_some(T* p, int begin, int end, Vec<T> v) {
  check_lanes<T>(begin, end);
#ifdef JAX_RNNT_MASKED_LANES
  const uint32_t mask = (1u << end) - (1u << begin);
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, __mmask16(mask), bits<__m512>(v));
  } else {
    _mm512_mask_storeu_pd(p, __mmask8(mask), bits<__m512d>(v));
  }
#else
  if (end - begin == kLanes<T>) return store(p, v);
  for (int i = begin; i < end; ++i) p[i] = v[i];
#endif
}

// Lanes of a vector.
struct LaneRange {
  int begin, end;
};

// Those of the vector at u that are in [begin, end).
template <class T>
JAX_RNNT_INLINE LaneRange lanes_between(int64_t u, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<T>;
  const int64_t low = begin - u < 0 ? 0 : begin - u < L ? begin - u : L;
  const int64_t high = end - u < low ? low : end - u < L ? end - u : L;
  return {int(low), int(high)};
}

template <class T>
JAX_RNNT_INLINE Vec<T> broadcast(T x) {
  return Vec<T>{} + x;
}

template <class T>
JAX_RNNT_INLINE IntVec<T> lane_index() {
  IntVec<T> v{};
  for (int i = 0; i < kLanes<T>; ++i) v[i] = i;
  return v;
}

// Fixed permutations of the lanes, whose numbers I... are 0, 1, 2, ...
template <int... I>
struct Lanes {
  template <int Step, class V>
  static JAX_RNNT_INLINE_MEMBER V swapped(V v) {
    return __builtin_shufflevector(v, v, (I ^ Step)...);
  }
  // Lane i - Step at i; the first Step lanes come from `below`.
  template <int Step, class V>
  static JAX_RNNT_INLINE_MEMBER V shifted(V v, V below) {
    return __builtin_shufflevector(below, v, (I + int(sizeof...(I)) - Step)...);
  }
  // One half of what takes lanes of a and b for them to be combined; see MergedLanes.
  template <class Merged, int Half, class V>
  static JAX_RNNT_INLINE_MEMBER V merged(V a, V b) {
    return __builtin_shufflevector(a, b, Merged::source(Half, I)...);
  }
};

template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
  using type = Lanes<I...>;
};
template <class T>
using LanesOf = typename MakeLanes<kLanes<T>>::type;

// Combines all lanes in log2(lanes) steps: lane i with lane i ^ step. Every lane holds the result.
template <class T, int Step = kLanes<T> / 2, class V, class Combine>
JAX_RNNT_INLINE V reduce_lanes(V v, Combine combine) {
  if constexpr (Step == 0) {
    return v;
  } else {
    const V other = LanesOf<T>::template swapped<Step>(v);
    return reduce_lanes<T, Step / 2>(combine(v, other), combine);
  }
}

// The lanes that level after level of a tree brings together, in order to combine all lanes of each
// of as many vectors as lanes. At level k, a has a share of the results of 2^k vectors, again and
// again, and so has b. Every level is one instruction a half: inside of 128 bits first.
template <class T, int Level>
struct MergedLanes {
  static constexpr int kWithin = 16 / sizeof(T), kBlocks = kLanes<T> / kWithin;

  // Lane of a, or that of b plus kLanes.
  static constexpr int source(int half, int lane) {
    const int block = lane / kWithin, i = lane % kWithin;
    if (1 << Level < kWithin / 2) return i % 2 * kLanes<T> + block * kWithin + 2 * half + i / 2;
    if (1 << Level < kWithin) {
      const int size = kWithin / 2;
      return i / size * kLanes<T> + block * kWithin + half * size + i % size;
    }
    const int size = kBlocks / 2, k = block % size;
    const int from = 2 << Level == kLanes<T> ? 2 * k + half : half * size + k;
    return block / size * kLanes<T> + from * kWithin + i;
  }
};

// Combines the lanes of each of as many vectors as lanes: lane i of the result is that of
// `vector(i)`. Depth first, so that few of them are alive.
template <class T, int Count = kLanes<T>, class Combine, class Vector>
JAX_RNNT_INLINE Vec<T> reduce_each(Combine combine, Vector vector, int first = 0) {
  if constexpr (Count == 1) {
    return vector(first);
  } else {
    constexpr int kHalf = Count / 2;
    using Merged = MergedLanes<T, __builtin_ctz(kHalf)>;
    const Vec<T> a = reduce_each<T, kHalf>(combine, vector, first);
    const Vec<T> b = reduce_each<T, kHalf>(combine, vector, first + kHalf);
    return combine(LanesOf<T>::template merged<Merged, 0>(a, b),
                   LanesOf<T>::template merged<Merged, 1>(a, b));
  }
}

// Transposes a square of lanes in place: the squares of 128 bits first, then these as elements.
template <class T>
JAX_RNNT_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int L = kLanes<T>, kWithin = 16 / sizeof(T), kBlocks = L / kWithin;
  using Pairs = MergedLanes<T, 0>;
  using Last = MergedLanes<T, __builtin_ctz(L) - 1>;
  const auto merge = [](auto merged, Vec<T>& a, Vec<T>& b) __attribute__((always_inline)) {
    const Vec<T> first = LanesOf<T>::template merged<decltype(merged), 0>(a, b);
    b = LanesOf<T>::template merged<decltype(merged), 1>(a, b);
    a = first;
  };
  const auto swap = [](Vec<T>& a, Vec<T>& b) __attribute__((always_inline)) {
    const Vec<T> first = a;
    a = b, b = first;
  };
  for (int i = 0; i < L; i += 2) merge(Pairs{}, rows[i], rows[i + 1]);
  if constexpr (kWithin == 4) {
    for (int i = 0; i < L; i += 4) {
      merge(MergedLanes<T, 1>{}, rows[i], rows[i + 2]);
      merge(MergedLanes<T, 1>{}, rows[i + 1], rows[i + 3]);
      swap(rows[i + 1], rows[i + 2]);
    }
  }
  for (int i = 0; i < kWithin && kBlocks > 1; ++i) {
    if constexpr (kBlocks == 2) merge(Last{}, rows[i], rows[i + kWithin]);
    if constexpr (kBlocks == 4) {
      Vec<T>&a = rows[i], &b = rows[i + kWithin], &c = rows[i + 2 * kWithin],
      &d = rows[i + 3 * kWithin];
      merge(Last{}, a, b);
      merge(Last{}, c, d);
      merge(Last{}, a, c);
      merge(Last{}, b, d);
    }
  }
}

template <class T, class V>
JAX_RNNT_INLINE V sum_of_lanes(V v) {
  return reduce_lanes<T>(v, [](V a, V b) __attribute__((always_inline)) { return a + b; });
}

template <class T, class V>
JAX_RNNT_INLINE V max_of_lanes(V v) {
  return reduce_lanes<T>(v, [](V a, V b) __attribute__((always_inline)) { return a > b ? a : b; });
}

// Whether a comparison holds in any lane.
template <class T>
JAX_RNNT_INLINE bool any(IntVec<T> comparison) {
#if defined(__AVX512DQ__) && JAX_RNNT_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask(bits<__m512i>(comparison)) != 0;
#endif
  return reduce_lanes<T>(comparison, [](IntVec<T> a, IntVec<T> b)
                                         __attribute__((always_inline)) { return a | b; })[0] != 0;
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
