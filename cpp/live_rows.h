// The rows of logits that take part in a gradient.
#pragma once

#include "kernels.h"
#include "storage.h"
#include "stream_writer.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// What the gradients of consecutive rows need beside the logits. A row without weight is dead: its
// gradient is 0.
template <class T>
struct RowWeights {
  const T *blank, *label;  // unit arc weights
  const T* denominators;

  // The first of the rows [row, end) that is dead; `end` if there is none.
  JAX_RNNT_INLINE_MEMBER int64_t first_dead(int64_t row, int64_t end) const {
    return first(row, end, [](auto blank, auto label) __attribute__((always_inline)) {
      return (blank == T(0)) & (label == T(0));
    });
  }
  // The first that is not.
  JAX_RNNT_INLINE_MEMBER int64_t first_live(int64_t row, int64_t end) const {
    return first(row, end, [](auto blank, auto label) __attribute__((always_inline)) {
      return (blank != T(0)) | (label != T(0));
    });
  }

 private:
  template <class Found>
  JAX_RNNT_INLINE_MEMBER int64_t first(int64_t row, int64_t end, Found found) const {
    constexpr int L = kLanes<T>;
    if (row == end || found(blank[row], label[row])) return row;
    const auto any_found = [&] {
      return any<T>(found(load<Vec<T>>(blank + row), load<Vec<T>>(label + row)));
    };
    while (end - row >= L && !any_found()) row += L;
    while (row < end && !found(blank[row], label[row])) ++row;
    return row;
  }
};

template <class T>
JAX_RNNT_INLINE RowWeights<T> row_weights(const ArcsBackward& p) {
  return {.blank = static_cast<const T*>(p.blank_weights),
          .label = static_cast<const T*>(p.label_weights),
          .denominators = static_cast<const T*>(p.denominators)};
}

// Starts to read the rows that are not dead, in order, some way ahead of their use. The processor's
// own prefetching stops while exponentials are computed, and it would read dead rows.
template <class In>
class RowsAhead {
 public:
  using T = Accumulator<In>;

  // Of the rows [begin, end).
  JAX_RNNT_INLINE_MEMBER RowsAhead(const In* logits, int64_t V, const RowWeights<T>& weights,
                                   int64_t begin, int64_t end)
      : logits_(logits), V_(V), weights_(weights), next_(begin * V), stop_(begin), end_(end) {
    read((1 << 14) / sizeof(In));
  }

  // What is to be prefetched while the `count` elements at x are used: as many, from the pointer
  // returned on. Where they do not lie together they are prefetched here.
  JAX_RNNT_INLINE_MEMBER const In* advance(const In* x, int64_t count) {
    if (stop_ * V_ - next_ < count) stop_ = weights_.first_dead(stop_, few_rows_after(stop_));
    if (stop_ * V_ - next_ < count) {
      read(count);
      return x;
    }
    next_ += count;
    return logits_ + (next_ - count);
  }

 private:
  JAX_RNNT_INLINE_MEMBER void read(int64_t count) {
    while (count > 0) {
      if (next_ == stop_ * V_) {
        const int64_t row = weights_.first_live(stop_, end_);
        if (row == end_) return;
        stop_ = weights_.first_dead(row, few_rows_after(row));
        next_ = row * V_;
      }
      const int64_t rest = stop_ * V_ - next_, size = rest < count ? rest : count;
      for (int64_t i = 0; i < size; i += kCacheLine / sizeof(In)) prefetch(logits_, next_ + i);
      next_ += size;
      count -= size;
    }
  }
  JAX_RNNT_INLINE_MEMBER int64_t few_rows_after(int64_t row) const {
    constexpr int64_t kFew = 64;
    return end_ - row < kFew ? end_ : row + kFew;
  }

  const In* const logits_;
  const int64_t V_;
  const RowWeights<T> weights_;
  int64_t next_, stop_;  // an element, and the end of rows from there on that are not dead
  const int64_t end_;
};

}  // namespace jax_rnnt::JAX_RNNT_TARGET
