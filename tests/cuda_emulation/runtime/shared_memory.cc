// Dynamic shared memory, and the copies to it that happen later than they are asked for.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "machine.h"

namespace emulation {
namespace {

// AddressSanitizer has its own red zones; without it, writes outside are found when the block ends.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kGuard = 0;
#else
constexpr size_t kGuard = 256;
#endif
constexpr unsigned char kGuardByte = 0xA5, kPoison = 0xFF;

bool is_aligned(const void* address, size_t alignment) {
  return reinterpret_cast<uintptr_t>(address) % alignment == 0;
}

// A copy has its effect at any time from being asked for to being waited for: looked at twice.
void look_at(const Copy& copy, const void* place) {
  look_at(copy.from, copy.size - copy.zero_fill, Access::kRead, place);
  look_at(copy.to, copy.size, Access::kWrite, place);
}

}  // namespace

DynamicShared::DynamicShared(size_t size) : size_(size) {
  void* allocation = nullptr;
  if (posix_memalign(&allocation, 128, size + 2 * kGuard) != 0) std::abort();
  allocation_ = static_cast<unsigned char*>(allocation);
  data_ = allocation_ + kGuard;
  std::fill_n(allocation_, kGuard, kGuardByte);
  std::fill_n(data_ + size, kGuard, kGuardByte);
}

DynamicShared::~DynamicShared() { std::free(allocation_); }

bool DynamicShared::contains(const void* address) const {
  const auto* byte = static_cast<const unsigned char*>(address);
  return data_ <= byte && byte < data_ + size_;
}

void DynamicShared::poison() { std::fill_n(data_, size_, kPoison); }

bool DynamicShared::guards_intact() const {
  const auto intact = [](unsigned char byte) { return byte == kGuardByte; };
  return std::all_of(allocation_, data_, intact) &&
         std::all_of(data_ + size_, data_ + size_ + kGuard, intact);
}

void* dynamic_shared() {
  Machine& machine = Machine::of_this_os_thread();
  machine.current();  // checks that a kernel runs
  return machine.dynamic_shared().data();
}

void copy_async(void* to, const void* from, size_t size, size_t zero_fill) {
  Machine& machine = Machine::of_this_os_thread();
  Thread& thread = machine.current();
  if ((size != 4 && size != 8 && size != 16) || zero_fill > size) {
    misuse("asynchronous copy of %zu bytes, %zu of them zeros", size, zero_fill);
  }
  if (!is_aligned(to, size) || !is_aligned(from, size)) {
    misuse("asynchronous copy of %zu bytes from %p to %p: misaligned", size, from, to);
  }
  if (machine.dynamic_shared().contains(from)) {
    misuse("asynchronous copy out of shared memory; it must be from global memory");
  }
  thread.copies.push_back({to, from, size, zero_fill, thread.committed_groups});
  look_at(thread.copies.back(), __builtin_return_address(0));
  // It may happen as early as now, too: what the destination holds is lost.
  std::memset(to, kPoison, size);
}

void commit_copies() { ++Machine::of_this_os_thread().current().committed_groups; }

void wait_for_copies(int groups_left) {
  Thread& thread = Machine::of_this_os_thread().current();
  const int64_t end = thread.committed_groups - groups_left;
  const void* place = __builtin_return_address(0);
  std::erase_if(thread.copies, [end, place](const Copy& copy) {
    if (copy.group >= end) return false;
    look_at(copy, place);
    std::memcpy(copy.to, copy.from, copy.size - copy.zero_fill);
    std::memset(static_cast<char*>(copy.to) + copy.size - copy.zero_fill, 0, copy.zero_fill);
    return true;
  });
}

}  // namespace emulation
