// Stacks that an OS thread switches between.
#pragma once

#include <cstddef>

namespace emulation {

class Fiber {
 public:
  Fiber() = default;                  // the OS thread's own stack
  Fiber(void (*entry)(), int index);  // `entry` runs at the first switch here and never returns
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves this fiber, which must be the running one, for another. Returns when somebody switches
  // back.
  void switch_to(Fiber& other);
  // To be called first in `entry`.
  static void entered();

  const void* stack() const { return stack_bottom_; }
  size_t stack_size() const { return stack_size_; }

 private:
  void* mapping_ = nullptr;
  void* context_ = nullptr;  // the stack pointer, or a ucontext_t
  const void* stack_bottom_ = nullptr;
  size_t stack_size_ = 0;
};

}  // namespace emulation
