// What selftest.cu, numbers.cu and misuse.cu share.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <vector>

struct Test {
  const char* name;
  void (*run)();
};

inline void check(bool condition, const char* what) {
  if (condition) return;
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

inline void run_all(std::initializer_list<Test> tests) {
  for (const Test& test : tests) {
    std::printf("%s\n", test.name);
    test.run();
  }
  std::printf("all passed\n");
}

inline void check_success(cudaError_t error) {
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  check(error == cudaSuccess, cudaGetErrorString(error));
}

// An array in device memory.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t size) : size_(size) {
    check_success(cudaMalloc(&data_, size * sizeof(T)));
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    check_success(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    check_success(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                   Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// The one thing that must be said in two ways.
template <class T>
__device__ T* dynamic_shared() {
#ifdef CUDA_EMULATION
  return static_cast<T*>(emulation::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
#endif
}
