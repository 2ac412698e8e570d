#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
#define EMULATION_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(EMULATION_UCONTEXT)
#define EMULATION_UCONTEXT 1
#endif

#ifdef EMULATION_UCONTEXT
#include <ucontext.h>
#else
// swapcontext() would make a system call each time. Pushes the registers that a function must
// preserve, leaves the stack pointer in *save, and pops those of the other stack.
extern "C" void emulation_switch_stack(void** save, void* load);
asm(R"(
  .text
  .hidden emulation_switch_stack
  .globl emulation_switch_stack
  .type emulation_switch_stack, @function
emulation_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulation_switch_stack, .-emulation_switch_stack
)");
#endif

namespace emulation {
namespace {

constexpr size_t kPage = 4096;
#ifdef EMULATION_ASAN
constexpr size_t kStack = 256 * 1024;
#else
constexpr size_t kStack = 64 * 1024;
#endif

thread_local Fiber* left = nullptr;  // the fiber that switched to the running one

}  // namespace

Fiber::Fiber(void (*entry)(), int index) {
  // A guard page lies below, where a stack that grows too large ends.
  mapping_ = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED || mprotect(mapping_, kPage, PROT_NONE) != 0) {
    std::perror("cuda emulation: cannot allocate the stack of a device thread");
    std::abort();
  }
  char* bottom = static_cast<char*>(mapping_) + kPage;
  stack_bottom_ = bottom;
  // Stacks would all use the same few cache sets if they began at the same place in a page.
  stack_size_ = kStack - static_cast<size_t>(index % 16) * 256;
#ifdef EMULATION_UCONTEXT
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = bottom;
  context->uc_stack.ss_size = stack_size_;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  context_ = context;
#else
  auto* top = reinterpret_cast<void**>(bottom + stack_size_);
  *--top = nullptr;  // where a return address would be
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers
  context_ = top;
#endif
}

Fiber::~Fiber() {
#ifdef EMULATION_UCONTEXT
  delete static_cast<ucontext_t*>(context_);
#endif
  if (mapping_ == nullptr) return;
#ifdef EMULATION_ASAN
  // Whatever is mapped here next must not inherit the marks of the frames that are left.
  ASAN_UNPOISON_MEMORY_REGION(stack_bottom_, kStack);
#endif
  munmap(mapping_, kPage + kStack);
}

void Fiber::switch_to(Fiber& other) {
  left = this;
#ifdef EMULATION_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, other.stack_bottom_, other.stack_size_);
#endif
#ifdef EMULATION_UCONTEXT
  if (context_ == nullptr) context_ = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(context_), static_cast<ucontext_t*>(other.context_));
#else
  emulation_switch_stack(&context_, other.context_);
#endif
#ifdef EMULATION_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, &left->stack_bottom_, &left->stack_size_);
#endif
}

void Fiber::entered() {
#ifdef EMULATION_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &left->stack_bottom_, &left->stack_size_);
#endif
}

}  // namespace emulation
