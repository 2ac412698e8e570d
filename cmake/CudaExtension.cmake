# The CUDA kernels: the extension _cuda, with a static CUDA runtime, so that it can be imported where
# there is neither a GPU nor a CUDA installation.

include("${CMAKE_CURRENT_LIST_DIR}/CudaCompiler.cmake")

# What the user asked for, before enable_language() sets a default of one architecture.
set(cuda_architectures "${CMAKE_CUDA_ARCHITECTURES}")
if(NOT cuda_architectures AND DEFINED ENV{CUDAARCHS})
  set(cuda_architectures "$ENV{CUDAARCHS}")
endif()

if(NOT JAX_RNNT_CUDA_COMPILER_FOUND)
  if(JAX_RNNT_CUDA STREQUAL "ON")
    message(FATAL_ERROR
            "JAX_RNNT_CUDA=ON, but there is no CUDA compiler. Put nvcc on the PATH, name it in the "
            "environment variable CUDACXX, or install one from PyPI (see README, Installing), which "
            "needs a build without isolation. JAX_RNNT_CUDA=OFF builds the CPU kernels alone.")
  endif()
  message(STATUS "No CUDA compiler: building the CPU kernels alone")
  return()
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

if(NOT cuda_architectures)
  set(cuda_architectures 75-real 80-real 86-real 89-real 90-real)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND cuda_architectures 100-real 120)
  else()
    list(APPEND cuda_architectures 90-virtual)
  endif()
endif()

file(GLOB device_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.cu")
nanobind_add_module(_cuda NB_STATIC cuda/module.cc cuda/ffi_handlers.cc ${call_sources}
                                    ${device_sources})
set_target_properties(_cuda PROPERTIES CUDA_ARCHITECTURES "${cuda_architectures}"
                                       CUDA_RUNTIME_LIBRARY Static
                                       CUDA_STANDARD 17
                                       CUDA_STANDARD_REQUIRED ON)
target_include_directories(_cuda SYSTEM PRIVATE "${JAX_RNNT_XLA_INCLUDE_DIR}")
# Denormals are flushed: the hardware's exponential is then one instruction.
target_compile_options(
  _cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-ftz=true -Xfatbin=-compress-all>
                $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${JAX_RNNT_WERROR}>>:-Werror=all-warnings>
                $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>)
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
install(TARGETS _cuda LIBRARY DESTINATION jax_rnnt/_native)
