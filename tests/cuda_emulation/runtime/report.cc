// What is printed when device code does what CUDA leaves undefined.
#include <dlfcn.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "machine.h"

namespace emulation {
namespace {

// Two lines of what the debug information has of a code address: the function, which most often is
// not in the dynamic symbol table, and the place in the source.
std::array<std::string, 2> debug_information(const void* code) {
  Dl_info info;
  if (dladdr(code, &info) == 0) return {"?", "?"};
  char offset[32];
  std::snprintf(offset, sizeof(offset), "0x%zx",
                static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase));
  const std::string file = info.dli_fname;
  const std::string command = "addr2line -Cfe '" + file + "' " + offset + " 2>/dev/null";
  std::array<std::string, 2> found;
  if (FILE* output = popen(command.c_str(), "r")) {
    char line[1024];
    for (std::string& text : found) {
      if (std::fgets(line, sizeof(line), output) == nullptr) break;
      text.assign(line, std::strcspn(line, "\n"));
    }
    pclose(output);
  }
  for (std::string& text : found) {
    if (text.empty()) text = file + "+" + offset;
  }
  return found;
}

const char* name(Op op) {
  switch (op) {
    case Op::kNone: return "";
    case Op::kSyncthreads: return "__syncthreads";
    case Op::kSyncthreadsOr: return "__syncthreads_or";
    case Op::kSyncthreadsAnd: return "__syncthreads_and";
    case Op::kSyncthreadsCount: return "__syncthreads_count";
    case Op::kSyncwarp: return "__syncwarp";
    case Op::kShuffle: return "__shfl_sync";
    case Op::kBallot: return "__ballot_sync";
    case Op::kAny: return "__any_sync";
    case Op::kAll: return "__all_sync";
    case Op::kReduceAdd: return "__reduce_add_sync";
    case Op::kReduceMin: return "__reduce_min_sync";
    case Op::kReduceMax: return "__reduce_max_sync";
  }
  return "?";
}

std::string activity(const Thread& thread, const Thread* current) {
  if (thread.exited) return "ended";
  if (thread.waits_in == Op::kNone) {
    if (&thread == current) return "running";
    return thread.fiber == nullptr ? "not begun" : "about to go on";
  }
  std::string text = std::string("in ") + name(thread.waits_in);
  if (thread.waits_in >= Op::kSyncwarp) {
    char mask[32];
    std::snprintf(mask, sizeof(mask), " with mask 0x%08x", thread.mask);
    text += mask;
  }
  return text + ", called by " + thread.site.function + " at " + thread.site.file + ":" +
         std::to_string(thread.site.line);
}

}  // namespace

std::string caller(const void* return_address) {
  const auto [function, place] = debug_information(static_cast<const char*>(return_address) - 1);
  return function + " at " + place;
}

void Machine::report() const {
  if (shared_ == nullptr) return;  // no grid runs
  std::fprintf(stderr, "  kernel %s\n  block (%u, %u, %u) of (%u, %u, %u), %d threads\n",
               debug_information(kernel_)[0].c_str(), blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x,
               gridDim.y, gridDim.z, size_);
  for (int begin = 0; begin < size_;) {
    const std::string text = activity(threads_[begin], current_);
    int end = begin + 1;
    while (end < size_ && activity(threads_[end], current_) == text) ++end;
    if (end - begin == 1) {
      std::fprintf(stderr, "  thread %d: %s\n", begin, text.c_str());
    } else {
      std::fprintf(stderr, "  threads %d to %d: %s\n", begin, end - 1, text.c_str());
    }
    begin = end;
  }
}

void misuse(const char* format, ...) {
  std::fputs("cuda emulation: ", stderr);
  std::va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputs("\n", stderr);
  Machine::of_this_os_thread().report();
  std::fflush(nullptr);
  std::abort();
}

}  // namespace emulation
