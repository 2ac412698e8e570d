// Atomics, fences, and loads and stores with cache hints.
#pragma once

#include <type_traits>

#include "thread.h"

// Nothing runs at the same time as a device thread that could touch the same memory: blocks run one
// after the other, and the threads of a block change only in collectives.
namespace emulation {

template <class T, class Update>
T atomic(T* address, Update update) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) {
    misuse("atomic operation on the misaligned address %p", static_cast<void*>(address));
  }
  set_atomic(true);
  const T old = *address;
  *address = update(old);
  set_atomic(false);
  return old;
}

template <class T, class... Allowed>
inline constexpr bool is_one_of = (std::is_same_v<T, Allowed> || ...);

template <class T>
void check_cached_access(const T* address) {
  static_assert(
      std::is_trivially_copyable_v<T> && (sizeof(T) & (sizeof(T) - 1)) == 0 && sizeof(T) <= 16,
      "CUDA has cache hints for types of 1, 2, 4, 8 and 16 bytes");
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) {
    misuse("misaligned address %p for an access of %zu bytes", static_cast<const void*>(address),
           sizeof(T));
  }
}

template <class T>
T cached_load(const T* address) {
  check_cached_access(address);
  return *address;
}

template <class T>
void cached_store(T* address, const T& value) {
  check_cached_access(address);
  *address = value;
}

}  // namespace emulation

template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  static_assert(emulation::is_one_of<T, int, unsigned, unsigned long long, float, double>);
  // Signed overflow wraps.
  return emulation::atomic(address, [&](T old) {
    if constexpr (std::is_same_v<T, int>)
      return int(unsigned(old) + unsigned(value));
    else
      return T(old + value);
  });
}

template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  static_assert(emulation::is_one_of<T, int, unsigned, long long, unsigned long long>);
  return emulation::atomic(address, [&](T old) { return value < old ? value : old; });
}

template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  static_assert(emulation::is_one_of<T, int, unsigned, long long, unsigned long long>);
  return emulation::atomic(address, [&](T old) { return old < value ? value : old; });
}

template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  static_assert(emulation::is_one_of<T, int, unsigned, unsigned long long, float>);
  return emulation::atomic(address, [&](T) { return value; });
}

template <class T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  static_assert(emulation::is_one_of<T, int, unsigned, unsigned long long, unsigned short>);
  return emulation::atomic(address, [&](T old) { return old == compare ? value : old; });
}

inline void __threadfence_block() { __asm__ __volatile__("" ::: "memory"); }
inline void __threadfence() { __threadfence_block(); }
inline void __threadfence_system() { __threadfence_block(); }

template <class T>
T __ldg(const T* address) {
  return emulation::cached_load(address);
}
template <class T>
T __ldca(const T* address) {
  return emulation::cached_load(address);
}
template <class T>
T __ldcg(const T* address) {
  return emulation::cached_load(address);
}
template <class T>
T __ldcs(const T* address) {
  return emulation::cached_load(address);
}
template <class T>
T __ldlu(const T* address) {
  return emulation::cached_load(address);
}
template <class T>
void __stwb(T* address, std::type_identity_t<T> value) {
  emulation::cached_store(address, value);
}
template <class T>
void __stcg(T* address, std::type_identity_t<T> value) {
  emulation::cached_store(address, value);
}
template <class T>
void __stcs(T* address, std::type_identity_t<T> value) {
  emulation::cached_store(address, value);
}
template <class T>
void __stwt(T* address, std::type_identity_t<T> value) {
  emulation::cached_store(address, value);
}
