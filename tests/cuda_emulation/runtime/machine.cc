#include "machine.h"

#include <algorithm>
#include <bit>
#include <cfenv>
#include <numeric>

constinit thread_local uint3 threadIdx{}, blockIdx{};
constinit thread_local dim3 blockDim, gridDim;
const int warpSize = 32;

namespace emulation {

namespace {

// Of double as well as float, where nvcc's -ftz=true flushes float alone.
void flush_subnormals() {
#ifdef __x86_64__
  constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZeros = 0x0040;
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | kFlushToZero | kDenormalsAreZeros);
#else
  misuse("subnormals can be flushed on x86 only");
#endif
}

}  // namespace

Machine& Machine::of_this_os_thread() {
  static thread_local Machine machine;
  return machine;
}

Thread& Machine::current() {
  if (current_ == nullptr) misuse("a device function was called outside of a kernel");
  return *current_;
}

void Machine::run_grid(const cudaLaunchConfig_t& config, const void* kernel,
                       void (*run)(const void*), const void* arguments, const Settings& settings) {
  if (current_ != nullptr) misuse("kernels cannot launch kernels here");
  DynamicShared shared(config.dynamicSmemBytes);
  kernel_ = kernel, run_ = run, arguments_ = arguments, shared_ = &shared;
  shuffles_ = settings.shuffle_seed != 0;
  random_.seed(settings.shuffle_seed);

  const dim3 grid = config.gridDim, block = config.blockDim;
  gridDim = grid;
  blockDim = block;
  size_ = static_cast<int>(block.x * block.y * block.z);
  if (static_cast<int>(threads_.size()) < size_) threads_.resize(size_), ready_.resize(size_);
  warps_.resize((size_ + 31) / 32);
  for (int i = 0; i < size_; ++i) {
    const unsigned n = static_cast<unsigned>(i);
    threads_[i].number = i;
    threads_[i].index = {n % block.x, n / block.x % block.y, n / block.x / block.y};
  }

  // XLA's threads flush subnormals to zero; the device does if it is compiled to.
  std::fenv_t environment;
  std::fegetenv(&environment);
  std::fesetenv(FE_DFL_ENV);
  if (settings.flush_subnormals) flush_subnormals();
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  std::vector<uint64_t> order;
  if (shuffles_) {
    order.resize(blocks);
    std::iota(order.begin(), order.end(), uint64_t{0});
    std::shuffle(order.begin(), order.end(), random_);
  }
  if (kLooksForRaces) races_.begin_launch(kernel);
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t n = shuffles_ ? order[i] : i;
    blockIdx = {unsigned(n % grid.x), unsigned(n / grid.x % grid.y), unsigned(n / grid.x / grid.y)};
    shared.poison();
    if (kLooksForRaces) {
      const auto begin = reinterpret_cast<uintptr_t>(shared.data());
      races_.begin_block(n, size_, {begin, begin + shared.size()});
    }
    run_block();
    if (!shared.guards_intact()) misuse("the block wrote outside of its dynamic shared memory");
  }
  races_.leave_kernel();
  std::fesetenv(&environment);
  shared_ = nullptr;
}

void Machine::run_block() {
  exited_ = at_barrier_ = 0;
  ready_begin_ = ready_count_ = 0;
  std::fill(warps_.begin(), warps_.end(), Warp{});
  for (int i = 0; i < size_; ++i) {
    Thread& thread = threads_[i];
    thread.exited = false;
    thread.committed_groups = 0;
    thread.copies.clear();
    warp_of(thread).live |= 1u << thread.lane();
    make_ready(thread);
  }
  resume(main_, *next_ready());  // comes back when all have ended
  current_ = nullptr;
}

void Machine::fiber_entry() {
  Fiber::entered();
  Machine& machine = of_this_os_thread();
  machine.run_threads(*machine.current_->fiber);
}

// What every fiber does. The current thread has not begun yet.
void Machine::run_threads(Fiber& self) {
  for (;;) {
    current_->fiber = &self;
    set_current(*current_);
    run_(arguments_);
    end_thread();
    Thread* next = next_ready();
    if (next != nullptr && next->fiber == nullptr) {
      current_ = next;
      continue;
    }
    idle_.push_back(&self);
    if (next != nullptr) {
      resume(self, *next);
    } else if (exited_ == size_) {
      self.switch_to(main_);
    } else {
      misuse("threads wait for others that never come");
    }
  }
}

void Machine::end_thread() {
  current_->exited = true;
  current_->fiber = nullptr;
  ++exited_;
  if (at_barrier_ > 0) misuse("a thread ended while others wait for it in __syncthreads");
  // Lanes may have waited for this one only.
  Warp& warp = warp_of(*current_);
  warp.live &= ~(1u << current_->lane());
  for (unsigned lanes = warp.waiting; lanes != 0; lanes &= warp.waiting & (lanes - 1)) {
    complete(lane_of(*current_, std::countr_zero(lanes)));
  }
}

// ------------------------------------------------------------------------------------ collectives

int Machine::block_collective(Op op, int predicate, Site site) {
  Thread& self = current();
  self.waits_in = op;
  self.site = site;
  self.operand = predicate != 0;
  if (exited_ > 0) misuse("a thread waits in __syncthreads, but others have ended");
  if (at_barrier_ == 0) first_at_barrier_ = &self;
  if (first_at_barrier_->waits_in != op || !(first_at_barrier_->site == site)) {
    misuse("threads wait for each other in different calls of __syncthreads");
  }
  if (++at_barrier_ < size_) {
    wait();
    return static_cast<int>(self.result);
  }
  uint64_t count = 0;
  for (int i = 0; i < size_; ++i) count += threads_[i].operand;
  at_barrier_ = 0;
  races_.block_barrier();
  const uint64_t all = static_cast<uint64_t>(size_);
  const uint64_t result = op == Op::kSyncthreadsOr    ? count > 0
                          : op == Op::kSyncthreadsAnd ? count == all
                                                      : count;
  for (int i = 0; i < size_; ++i) {
    threads_[i].result = result;
    release(threads_[i]);
  }
  return static_cast<int>(result);
}

uint64_t Machine::warp_collective(Op op, unsigned mask, uint64_t operand, int source, Site site) {
  Thread& self = current();
  self.waits_in = op;
  self.mask = mask;
  self.operand = operand;
  self.source = source;
  self.site = site;
  if ((mask >> self.lane() & 1) == 0) {
    misuse("thread %d calls with mask 0x%08x, which leaves out its own lane", self.number, mask);
  }
  warp_of(self).waiting |= 1u << self.lane();
  if (!complete(self)) wait();
  return self.result;
}

// Ends the collective that `caller` waits in if all lanes are there.
bool Machine::complete(const Thread& caller) {
  Warp& warp = warp_of(caller);
  const unsigned members = caller.mask & warp.live;
  bool all = (members & ~warp.waiting) == 0;
  for (unsigned lanes = members & warp.waiting; lanes != 0; lanes &= lanes - 1) {
    const Thread& other = lane_of(caller, std::countr_zero(lanes));
    if (other.waits_in == caller.waits_in && other.mask == caller.mask &&
        other.site == caller.site) {
      continue;
    }
    if (other.mask >> caller.lane() & 1) {
      misuse("threads %d and %d of a warp wait for each other in different calls", caller.number,
             other.number);
    }
    all = false;  // the other lane may come here later
  }
  if (!all) return false;
  if (kLooksForRaces && caller.waits_in == Op::kSyncwarp && members == warp.live) {
    races_.warp_barrier(caller.number / 32);
  }
  const uint64_t result = combine(caller, members);
  for (unsigned lanes = members; lanes != 0; lanes &= lanes - 1) {
    Thread& thread = lane_of(caller, std::countr_zero(lanes));
    if (caller.waits_in != Op::kShuffle) thread.result = result;
  }
  warp.waiting &= ~members;
  for (unsigned lanes = members; lanes != 0; lanes &= lanes - 1) {
    release(lane_of(caller, std::countr_zero(lanes)));
  }
  return true;
}

// The result of all lanes; shuffles store one for each lane instead.
uint64_t Machine::combine(const Thread& caller, unsigned members) {
  unsigned ballot = 0;
  int64_t sum = 0, least = INT64_MAX, greatest = INT64_MIN;
  for (unsigned lanes = members; lanes != 0; lanes &= lanes - 1) {
    const int lane = std::countr_zero(lanes);
    Thread& thread = lane_of(caller, lane);
    const int64_t value = static_cast<int64_t>(thread.operand);
    ballot |= unsigned(value != 0) << lane;
    sum = static_cast<int64_t>(uint64_t(sum) + thread.operand);
    least = std::min(least, value);
    greatest = std::max(greatest, value);
    if (caller.waits_in != Op::kShuffle) continue;
    if ((members >> thread.source & 1) == 0) {
      misuse("the shuffle of thread %d reads lane %d, which does not take part", thread.number,
             thread.source);
    }
    thread.result = lane_of(caller, thread.source).operand;
  }
  switch (caller.waits_in) {
    case Op::kBallot: return ballot;
    case Op::kAny: return ballot != 0;
    case Op::kAll: return ballot == members;
    case Op::kReduceAdd: return static_cast<uint64_t>(sum);
    case Op::kReduceMin: return static_cast<uint64_t>(least);
    case Op::kReduceMax: return static_cast<uint64_t>(greatest);
    default: return 0;
  }
}

// ------------------------------------------------------------------------------------- scheduling

void Machine::yield() {
  make_ready(current());
  wait();
}

// Runs other threads until the current one is released.
void Machine::wait() {
  Thread& self = *current_;
  Thread* next = next_ready();
  if (next == nullptr) misuse("threads wait for others that never come");
  if (next != &self) resume(*self.fiber, *next);
}

// Lets a thread go on. The current one already does.
void Machine::release(Thread& thread) {
  thread.waits_in = Op::kNone;
  if (&thread != current_) make_ready(thread);
}

void Machine::make_ready(Thread& thread) {
  ready_[(ready_begin_ + ready_count_++) % size_] = &thread;
}

Thread* Machine::next_ready() {
  if (ready_count_ == 0) return nullptr;
  Thread*& first = ready_[ready_begin_];
  if (shuffles_) std::swap(first, ready_[(ready_begin_ + random_() % ready_count_) % size_]);
  ready_begin_ = (ready_begin_ + 1) % size_;
  --ready_count_;
  return first;
}

void Machine::resume(Fiber& from, Thread& thread) {
  if (thread.fiber == nullptr) thread.fiber = &idle_fiber();
  set_current(thread);
  from.switch_to(*thread.fiber);
}

void Machine::set_current(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
  if (!kLooksForRaces) return;
  const auto stack = reinterpret_cast<uintptr_t>(thread.fiber->stack());
  races_.enter(thread.number, {stack, stack + thread.fiber->stack_size()});
}

Fiber& Machine::idle_fiber() {
  if (idle_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>(&fiber_entry, static_cast<int>(fibers_.size())));
    return *fibers_.back();
  }
  Fiber& fiber = *idle_.back();
  idle_.pop_back();
  return fiber;
}

int block_collective(Op op, int predicate, Site site) {
  return Machine::of_this_os_thread().block_collective(op, predicate, site);
}

uint64_t warp_collective(Op op, unsigned mask, uint64_t operand, int source, Site site) {
  return Machine::of_this_os_thread().warp_collective(op, mask, operand, source, site);
}

void yield() { Machine::of_this_os_thread().yield(); }

int lane() { return Machine::of_this_os_thread().current().lane(); }

}  // namespace emulation
