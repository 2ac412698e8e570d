# Chooses CMAKE_CUDA_COMPILER before enable_language(CUDA): what CUDACXX or the cache says, else the
# nvcc of the PATH or of /usr/local/cuda, else that of NVIDIA's Python packages:
#
#   pip install "nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-crt==13.0.*" "nvidia-nvvm==13.0.*" \
#               "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cccl==13.0.*"
#
# Their versions must agree. Needs find_package(Python). Sets JAX_RNNT_CUDA_COMPILER_FOUND.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(JAX_RNNT_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda
               PATH_SUFFIXES bin DOC "CUDA compiler")
  if(NOT JAX_RNNT_NVCC)
    # Not site-packages itself: the packages of an isolated build are elsewhere on sys.path.
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c
              "import importlib.util as u; s = u.find_spec('nvidia'); print(';'.join(s.submodule_search_locations) if s else '')"
      OUTPUT_VARIABLE nvidia_packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    list(TRANSFORM nvidia_packages APPEND /cu13)
    find_program(JAX_RNNT_NVCC nvcc PATHS ${nvidia_packages} PATH_SUFFIXES bin NO_DEFAULT_PATH)
    unset(nvidia_packages)
  endif()
  if(JAX_RNNT_NVCC)
    set(CMAKE_CUDA_COMPILER "${JAX_RNNT_NVCC}")
  endif()
endif()

# In the packages the libraries are in lib, where nvcc does not look, and there is no libcudart.so,
# without which FindCUDAToolkit finds nothing. It is not linked: the runtime is static.
if(CMAKE_CUDA_COMPILER AND NOT CMAKE_CUDA_FLAGS)
  get_filename_component(cuda_root "${CMAKE_CUDA_COMPILER}" DIRECTORY)
  get_filename_component(cuda_root "${cuda_root}" DIRECTORY)
  if(EXISTS "${cuda_root}/lib/libcudart_static.a" AND NOT EXISTS "${cuda_root}/lib64")
    set(CMAKE_CUDA_FLAGS_INIT "-L\"${cuda_root}/lib\"")
    file(GLOB cuda_runtime_library "${cuda_root}/lib/libcudart.so.*")
    set(CUDA_CUDART "${cuda_runtime_library}" CACHE FILEPATH "CUDA runtime")
    unset(cuda_runtime_library)
  endif()
  unset(cuda_root)
endif()

if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
  set(JAX_RNNT_CUDA_COMPILER_FOUND TRUE)
else()
  set(JAX_RNNT_CUDA_COMPILER_FOUND FALSE)
endif()
