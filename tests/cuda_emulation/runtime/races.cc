#include "races.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <string>

#include "machine.h"

namespace emulation {

namespace {

constinit thread_local Races* races = nullptr;  // null where accesses are not looked at

constexpr size_t kMostPages = 20'000;

bool contains(Races::Range range, uintptr_t address) {
  return range.first <= address && address < range.second;
}

// This OS thread's copies of the thread-local variables of the program or library that has a
// function: static shared memory is among them.
Races::Range thread_locals_beside(const void* function) {
  struct Search {
    Dl_info library{};
    Races::Range found{};
  } search;
  if (dladdr(function, &search.library) == 0) return {};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        Search& search = *static_cast<Search*>(data);
        if (info->dlpi_tls_data == nullptr) return 0;
        bool is_it = false;
        size_t size = 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& part = info->dlpi_phdr[i];
          const auto* begin = reinterpret_cast<const char*>(info->dlpi_addr + part.p_vaddr);
          if (part.p_type == PT_TLS) size = part.p_memsz;
          if (part.p_type == PT_LOAD && begin - part.p_offset == search.library.dli_fbase) {
            is_it = true;
          }
        }
        if (!is_it) return 0;
        const auto begin = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
        search.found = {begin, begin + size};
        return 1;
      },
      &search);
  return search.found;
}

std::string name_of(Actor actor) {
  return "thread " + std::to_string(actor.thread) + " of block " + std::to_string(actor.block);
}

}  // namespace

bool Actor::is_before(Actor now) const {
  if (!is_in_block_of(now)) return false;
  if (thread == now.thread || block_barriers < now.block_barriers) return true;
  return is_in_warp_of(now) && warp_barriers < now.warp_barriers;
}

void Races::begin_launch(const void* kernel) {
  global_era_ = ++era_;
  static_shared_ = thread_locals_beside(kernel);
  if (pages_.size() > kMostPages) {
    pages_.clear();
    recent_ = {};
  }
}

void Races::begin_block(uint64_t block, int threads, Range dynamic_shared) {
  shared_era_ = ++era_;
  dynamic_shared_ = dynamic_shared;
  warp_barriers_.assign((threads + 31) / 32, 0);
  now_ = {};
  now_.known = 1;
  now_.block = block;
  races = this;
}

void Races::enter(int thread, Range stack) {
  now_.thread = uint64_t(thread);
  now_.warp_barriers = warp_barriers_[thread / 32];
  stack_ = stack;
}

void Races::leave_kernel() { races = nullptr; }

void Races::block_barrier() { ++now_.block_barriers; }

void Races::warp_barrier(int warp) {
  ++warp_barriers_[warp];
  if (warp == int(now_.thread / 32)) now_.warp_barriers = warp_barriers_[warp];
}

bool Races::is_shared(uintptr_t address) const {
  return contains(dynamic_shared_, address) || contains(static_shared_, address);
}

void Races::access(uintptr_t address, size_t size, Access access, const void* place) {
  if (contains(stack_, address)) return;
  for (const uintptr_t end = address + size; address < end;) {
    Page& page = page_of(address);
    const size_t offset = address % kPage;
    if (offset % page.unit != 0 || end - address < page.unit) page.split_words();
    Unit& unit = page.units[offset / page.unit];
    if (access == Access::kRead) {
      read(unit, address, place);
    } else {
      write(unit, address, place);
    }
    address += page.unit;
  }
}

void Races::Page::split_words() {
  std::vector<Unit> bytes(kPage);
  for (size_t i = 0; i < kPage; ++i) bytes[i] = units[i / unit];
  units = std::move(bytes);
  unit = 1;
}

// Shared memory has its own pages, also where it shares one of the host's with other memory.
Races::Page& Races::page_of(uintptr_t address) {
  const bool shared = is_shared(address);
  const uintptr_t key = address / kPage * 2 + shared;
  auto& [recent_key, recent] = recent_[key % recent_.size()];
  if (recent_key != key || recent == nullptr) {
    std::unique_ptr<Page>& page = pages_[key];
    if (page == nullptr) page = std::make_unique<Page>();
    recent_key = key;
    recent = page.get();
  }
  const uint64_t era = shared ? shared_era_ : global_era_;
  if (recent->era != era) {
    recent->era = era;
    recent->unit = kWord;
    recent->units.assign(kPage / kWord, Unit{});
  }
  return *recent;
}

void Races::read(Unit& unit, uintptr_t address, const void* place) {
  if (unit.write.known && !unit.write.is_before(now_) && !(unit.write.atomic && now_.atomic)) {
    report("reads", unit.write, unit.place_of_write, "wrote", address, place);
  }
  if (unit.read.known && !unit.read.is_in_block_of(now_)) {
    unit.earlier_block_read = unit.read;
    unit.read = unit.other_read = {};
  }
  if (!unit.read.known || unit.read.is_before(now_)) {
    unit.read = now_;
    unit.place_of_read = uint32_t(reinterpret_cast<uintptr_t>(place));
    if (unit.other_read.is_before(now_)) unit.other_read = {};
  } else if (!unit.other_read.known || unit.other_read.is_before(now_) ||
             (unit.other_read.is_in_warp_of(unit.read) && !now_.is_in_warp_of(unit.read))) {
    unit.other_read = now_;
  }
}

void Races::write(Unit& unit, uintptr_t address, const void* place) {
  const bool both_atomic = unit.write.atomic && now_.atomic;
  if (unit.write.known && !unit.write.is_before(now_) && !both_atomic) {
    report("writes", unit.write, unit.place_of_write, "wrote", address, place);
  }
  for (const Actor& reader : {unit.read, unit.other_read, unit.earlier_block_read}) {
    if (reader.known && !reader.is_before(now_) && !(reader.atomic && now_.atomic)) {
      report("writes", reader, unit.place_of_read, "read", address, place);
    }
  }
  unit = {};
  unit.write = now_;
  unit.place_of_write = uint32_t(reinterpret_cast<uintptr_t>(place));
}

void Races::report(const char* what, Actor other, uint32_t other_place, const char* did,
                   uintptr_t address, const void* place) const {
  const char* memory = is_shared(address) ? "shared" : "global";
  const auto here = reinterpret_cast<uintptr_t>(place);
  const auto there = reinterpret_cast<const void*>((here & ~uintptr_t{0xffffffff}) | other_place);
  misuse("race: %s %s %s memory at %p\n    in %s\n  that %s %s, with no barrier between\n    in %s",
         name_of(now_).c_str(), what, memory, reinterpret_cast<void*>(address),
         caller(place).c_str(), name_of(other).c_str(), did, caller(there).c_str());
}

void look_at(const void* address, size_t size, Access access, const void* place) {
  if (races != nullptr) races->access(reinterpret_cast<uintptr_t>(address), size, access, place);
}

void set_atomic(bool atomic) {
  if (races != nullptr) races->set_atomic(atomic);
}

}  // namespace emulation

// ---------------------------------------------------- what the compiler puts before every access

#define EMULATION_HOOK(name, kind)                                                   \
  extern "C" void __tsan_##name(void* address, size_t size) {                        \
    emulation::look_at(address, size, emulation::kind, __builtin_return_address(0)); \
  }
#define EMULATION_SIZED_HOOK(name, size, kind)                                       \
  extern "C" void __tsan_##name##size(void* address) {                               \
    emulation::look_at(address, size, emulation::kind, __builtin_return_address(0)); \
  }
#define EMULATION_HOOKS_OF(size)                            \
  EMULATION_SIZED_HOOK(read, size, Access::kRead)           \
  EMULATION_SIZED_HOOK(write, size, Access::kWrite)         \
  EMULATION_SIZED_HOOK(unaligned_read, size, Access::kRead) \
  EMULATION_SIZED_HOOK(unaligned_write, size, Access::kWrite)

EMULATION_HOOKS_OF(1)
EMULATION_HOOKS_OF(2)
EMULATION_HOOKS_OF(4)
EMULATION_HOOKS_OF(8)
EMULATION_HOOKS_OF(16)
EMULATION_HOOK(read_range, Access::kRead)
EMULATION_HOOK(write_range, Access::kWrite)

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
