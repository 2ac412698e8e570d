// Runs a grid: its blocks one after the other, the threads of a block as fibers of one OS thread.
//
// A device thread runs until it must wait in a collective or ends; only then does another one run.
// A fiber is used by one device thread until that ends, then by the next that has not begun:
// threads that never wait all run on one fiber, without a switch.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "emulation/host_api.h"
#include "emulation/thread.h"
#include "fiber.h"
#include "races.h"

namespace emulation {

struct Copy {
  void* to;
  const void* from;
  size_t size, zero_fill;
  int64_t group;
};

struct Thread {
  uint3 index{};
  int number = 0;          // in the block
  Fiber* fiber = nullptr;  // from its begin to its end
  bool exited = false;
  Op waits_in = Op::kNone;
  Site site{};
  unsigned mask = 0;
  uint64_t operand = 0, result = 0;
  int source = 0;
  int64_t committed_groups = 0;
  std::vector<Copy> copies;

  int lane() const { return number % 32; }
};

struct Settings {
  uint64_t shuffle_seed;
  bool flush_subnormals;
};

struct Warp {
  unsigned live = 0, waiting = 0;  // lanes that have not exited; those in a warp collective
};

class DynamicShared {
 public:
  explicit DynamicShared(size_t size);
  ~DynamicShared();
  DynamicShared(const DynamicShared&) = delete;
  DynamicShared& operator=(const DynamicShared&) = delete;

  void* data() const { return data_; }
  size_t size() const { return size_; }
  bool contains(const void* address) const;
  void poison();
  bool guards_intact() const;

 private:
  size_t size_;
  unsigned char* allocation_;
  unsigned char* data_;
};

// The function and the line of a call, as far as the debug information has them.
std::string caller(const void* return_address);

class Machine {
 public:
  static Machine& of_this_os_thread();

  void run_grid(const cudaLaunchConfig_t& config, const void* kernel, void (*run)(const void*),
                const void* arguments, const Settings& settings);

  int block_collective(Op op, int predicate, Site site);
  uint64_t warp_collective(Op op, unsigned mask, uint64_t operand, int source, Site site);
  void yield();
  Thread& current();
  DynamicShared& dynamic_shared() { return *shared_; }
  void report() const;  // what every thread does, to stderr

 private:
  static void fiber_entry();

  void run_block();
  [[noreturn]] void run_threads(Fiber& self);
  void end_thread();
  bool complete(const Thread& caller);
  uint64_t combine(const Thread& caller, unsigned members);
  void wait();
  void release(Thread& thread);
  void make_ready(Thread& thread);
  Thread* next_ready();
  void resume(Fiber& from, Thread& thread);
  void set_current(Thread& thread);
  Fiber& idle_fiber();
  Warp& warp_of(const Thread& thread) { return warps_[thread.number / 32]; }
  Thread& lane_of(const Thread& thread, int lane) {
    return threads_[thread.number / 32 * 32 + lane];
  }

  // The launch
  const void* kernel_ = nullptr;
  void (*run_)(const void*) = nullptr;
  const void* arguments_ = nullptr;
  DynamicShared* shared_ = nullptr;
  bool shuffles_ = false;
  std::mt19937_64 random_;
  // The block
  int size_ = 0, exited_ = 0, at_barrier_ = 0;
  const Thread* first_at_barrier_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Thread*> ready_;  // a ring: `ready_count_` of them from `ready_begin_` on
  int ready_begin_ = 0, ready_count_ = 0;
  Thread* current_ = nullptr;
  Races races_;
  // Stacks
  Fiber main_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
};

}  // namespace emulation
