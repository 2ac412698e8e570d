// Writing much more than the caches hold, in order.
#pragma once

#include "simd.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

constexpr int64_t kCacheLine = 64;
// What is larger than this is gone from the caches before anybody reads it.
constexpr int64_t kMostCached = 1 << 24;

// Copies whole cache lines to where nobody reads soon, without reading what was there before, which
// would be half as much traffic again. Other threads see them after finish_streaming().
JAX_RNNT_INLINE void stream_lines(void* to, const void* from, int64_t bytes) {
#ifdef __x86_64__
  for (int64_t i = 0; i < bytes; i += kCacheLine) {
    char* line = static_cast<char*>(to) + i;
    const char* source = static_cast<const char*>(from) + i;
#ifdef __AVX512F__
    _mm512_stream_si512(reinterpret_cast<__m512i*>(line), _mm512_load_si512(source));
#else
    for (int k = 0; k < kCacheLine; k += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(line + k),
                       _mm_load_si128(reinterpret_cast<const __m128i*>(source + k)));
    }
#endif
  }
#else
  __builtin_memcpy(to, from, bytes);
#endif
}

JAX_RNNT_INLINE void stream_zeros(void* to, int64_t bytes) {
#ifdef __x86_64__
  for (char *line = static_cast<char*>(to), *end = line + bytes; line < end; line += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(line), __m128i{});
  }
#else
  __builtin_memset(to, 0, bytes);
#endif
}

JAX_RNNT_INLINE void finish_streaming() {
#ifdef __x86_64__
  _mm_sfence();
#endif
}

enum class Writing {
  kDirect,    // to where the elements belong
  kInPlace,   // collected: they take the place of what they are computed from
  kStreamed,  // collected, and past the caches
};

// Takes the elements of an array in order, up to kCapacity at a time: they are put at next(), where
// a vector may reach over their end, and then counted by add(). What is collected leaves in whole
// cache lines when next() is called again; then only what has been counted is written over.
template <class In>
class StreamWriter {
 public:
  static constexpr int64_t kCapacity = 2048 / sizeof(In);

  // Of the elements [target, end), which nobody else writes.
  JAX_RNNT_INLINE_MEMBER StreamWriter(In* target, In* end, Writing how)
      : target_(target), end_(end), how_(how) {
    begin_ = size_ = int64_t(reinterpret_cast<uintptr_t>(target) % kCacheLine / sizeof(In));
    target_ -= begin_;
  }
  StreamWriter(const StreamWriter&) = delete;

  // Where the next `count` elements go; they may be followed by others up to limit().
  JAX_RNNT_INLINE_MEMBER In* next(int64_t count) {
    if (how_ == Writing::kDirect) return target_ + size_;
    if (size_ + count > kCapacity + kLine) flush();
    return buffer_ + size_;
  }
  JAX_RNNT_INLINE_MEMBER const In* limit() const {
    return how_ == Writing::kDirect ? end_ : buffer_ + sizeof(buffer_) / sizeof(In);
  }
  JAX_RNNT_INLINE_MEMBER void add(int64_t count) { size_ += count; }

  // As next() and add() of any number of zeros.
  JAX_RNNT_INLINE_MEMBER void zeros(int64_t count) {
    if (how_ == Writing::kDirect) {
      __builtin_memset(target_ + size_, 0, count * sizeof(In));
      size_ += count;
      return;
    }
    if (count > kCapacity) {
      const int64_t to_line = -size_ & (kLine - 1);
      count -= to_line;
      fill(to_line);
      flush();
      const int64_t bytes = count / kLine * kCacheLine;
      if (how_ == Writing::kStreamed) {
        stream_zeros(target_, bytes);
      } else {
        __builtin_memset(target_, 0, bytes);
      }
      target_ += bytes / sizeof(In);
      count %= kLine;
    }
    if (count > 0) fill(count);
  }

  JAX_RNNT_INLINE_MEMBER void finish() {
    if (how_ == Writing::kDirect) return;
    flush();
    __builtin_memcpy(target_ + begin_, buffer_ + begin_, (size_ - begin_) * sizeof(In));
    if (how_ == Writing::kStreamed) finish_streaming();
  }

 private:
  static constexpr int64_t kLine = kCacheLine / sizeof(In);

  JAX_RNNT_INLINE_MEMBER void fill(int64_t zeros) {
    __builtin_memset(next(zeros), 0, zeros * sizeof(In));
    add(zeros);
  }

  // Writes all whole lines. What is left stays, at the beginning of the buffer.
  JAX_RNNT_INLINE_MEMBER void flush() {
    int64_t whole = size_ / kLine * kLine, from = 0;
    if (whole == 0) return;
    if (begin_ > 0) {
      __builtin_memcpy(target_ + begin_, buffer_ + begin_, (kLine - begin_) * sizeof(In));
      from = kLine;
    }
    const int64_t bytes = (whole - from) * sizeof(In);
    if (how_ == Writing::kStreamed) {
      stream_lines(target_ + from, buffer_ + from, bytes);
    } else {
      __builtin_memcpy(target_ + from, buffer_ + from, bytes);
    }
    store(buffer_, load<Line>(buffer_ + whole));
    target_ += whole;
    size_ -= whole;
    begin_ = 0;
  }

  struct Line {
    In elements[kLine];
  };

  In* target_;  // of the buffer's first element, on a cache line
  In* const end_;
  const Writing how_;
  int64_t begin_, size_;  // the elements [begin, size) of the buffer are there
  alignas(kCacheLine) In buffer_[kCapacity + 3 * kLine];
};

}  // namespace jax_rnnt::JAX_RNNT_TARGET
