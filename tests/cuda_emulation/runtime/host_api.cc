// The emulated runtime API, and the checks that a launch must pass.
#include "emulation/host_api.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "machine.h"

namespace emulation {
namespace {

constexpr size_t kSharedWithoutOptIn = 48 * 1024;
constexpr int kReservedSharedMemory = 1024;  // of each block

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

const char* environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : otherwise;
}

struct State {
  std::mutex mutex;
  Device device;
  Settings settings;
  std::map<const void*, size_t> dynamic_shared_limits;  // of kernels that asked for more
  std::atomic<uint64_t> launches = 0;

  State() {
    device.shared_memory_per_block_optin =
        std::stoi(environment("JAX_RNNT_EMULATION_SHARED_MEMORY", "232448"));
    const std::string capability = environment("JAX_RNNT_EMULATION_COMPUTE_CAPABILITY", "9.0");
    device.compute_capability_major = std::stoi(capability);
    device.compute_capability_minor = std::stoi(capability.substr(capability.find('.') + 1));
    device.multiprocessors = std::stoi(environment("JAX_RNNT_EMULATION_MULTIPROCESSORS", "132"));
    settings.shuffle_seed = std::stoull(environment("JAX_RNNT_EMULATION_SHUFFLE", "0"));
    settings.flush_subnormals =
        std::stoi(environment("JAX_RNNT_EMULATION_FLUSH_SUBNORMALS", "0")) != 0;
  }
};

State& state() {
  static State state;
  return state;
}

cudaError_t check_attributes(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    switch (attribute.id) {
      case cudaLaunchAttributeIgnore:
      case cudaLaunchAttributeAccessPolicyWindow:
      case cudaLaunchAttributeProgrammaticStreamSerialization:
      case cudaLaunchAttributePriority: break;
      case cudaLaunchAttributeClusterDimension: {
        const auto& cluster = attribute.val.clusterDim;
        if (cluster.x * cluster.y * cluster.z != 1) return cudaErrorNotSupported;
        break;
      }
      default: return cudaErrorInvalidValue;
    }
  }
  return cudaSuccess;
}

cudaError_t check_launch(const cudaLaunchConfig_t& config, size_t dynamic_shared_limit) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0 || grid.x > 0x7fffffff ||
      grid.y > 65535 || grid.z > 65535 || block.x > 1024 || block.y > 1024 || block.z > 64 ||
      threads > 1024) {
    return cudaErrorInvalidConfiguration;
  }
  if (config.dynamicSmemBytes > dynamic_shared_limit) return cudaErrorInvalidValue;
  return check_attributes(config);
}

}  // namespace

Device device() {
  const std::lock_guard lock(state().mutex);
  return state().device;
}

void set_device(const Device& device) {
  const std::lock_guard lock(state().mutex);
  state().device = device;
  state().dynamic_shared_limits.clear();
}

void set_shuffle(unsigned long long seed) {
  const std::lock_guard lock(state().mutex);
  state().settings.shuffle_seed = seed;
}

unsigned long long launches() { return state().launches; }

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*run)(const void*),
                   const void* arguments) {
  size_t limit = kSharedWithoutOptIn;
  Settings settings;
  {
    const std::lock_guard lock(state().mutex);
    const auto found = state().dynamic_shared_limits.find(kernel);
    if (found != state().dynamic_shared_limits.end()) limit = found->second;
    settings = state().settings;
  }
  const cudaError_t error = check_launch(config, limit);
  if (error != cudaSuccess) return remember(error);
  ++state().launches;
  Machine::of_this_os_thread().run_grid(config, kernel, run, arguments, settings);
  return cudaSuccess;
}

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return remember(cudaErrorInvalidValue);
  }
  const std::lock_guard lock(state().mutex);
  if (value < 0 || value > state().device.shared_memory_per_block_optin) {
    return remember(cudaErrorInvalidValue);
  }
  state().dynamic_shared_limits[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t blocks_per_multiprocessor(int* blocks, int block_size, size_t dynamic_shared) {
  if (block_size < 1 || block_size > 1024) return remember(cudaErrorInvalidValue);
  // A block takes 1 KB of shared memory for itself, and the largest one fits.
  const size_t available = static_cast<size_t>(device().shared_memory_per_block_optin) + 1024;
  const int by_threads = 2048 / ((block_size + 31) / 32 * 32);
  const int by_shared = static_cast<int>(available / (dynamic_shared + 1024));
  *blocks = std::min({32, by_threads, by_shared});
  return cudaSuccess;
}

}  // namespace emulation

using emulation::remember;

cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }

cudaError_t cudaPeekAtLastError() { return emulation::last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNotSupported: return "operation not supported";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return remember(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return remember(cudaErrorInvalidDevice);
  const emulation::Device limits = emulation::device();
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = emulation::kSharedWithoutOptIn; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = limits.multiprocessors; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = limits.compute_capability_major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = limits.compute_capability_minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = limits.shared_memory_per_block_optin + emulation::kReservedSharedMemory;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = emulation::kReservedSharedMemory; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = limits.shared_memory_per_block_optin;
      break;
    default: return remember(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaMalloc(void** address, size_t size) {
  *address = nullptr;
  if (size == 0) return cudaSuccess;
  if (posix_memalign(address, 256, size) != 0) return remember(cudaErrorMemoryAllocation);
  std::memset(*address, 0xFF, size);
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  std::free(address);
  return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, size_t size) {
  if (size != 0) std::memset(to, value, size);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t) {
  return cudaMemset(to, value, size);
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  if (size != 0) std::memcpy(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, size, kind);
}
