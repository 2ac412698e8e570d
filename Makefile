# make test, make demo: each sets up what it needs in .venv first.
# make test-gpu, bench-gpu: with the packages that PYTHON has, where there is a GPU and no network.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
COMMA := ,
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(wildcard cmake/* cpp/* cuda/*)
CXX_SOURCES := $(wildcard cpp/*.h cpp/*.cc cuda/*.h cuda/*.cc cuda/*.cu benchmarks/*.cc) \
               $(wildcard tests/*.h tests/*.cc) \
               $(shell find tests/cuda_emulation -name "*.h" -o -name "*.cc" -o -name "*.cu")
# The compile checks of the CUDA kernels take the compiler from PyPI where there is no other.
CUDA_EXTRA := $(if $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null),,$(COMMA)nvcc)

# Tests that run the kernels. Pure JAX is left out: it is the same as in test-cpu.
EMULATED_TESTS := $(addprefix tests/,test_values.py test_arcs.py test_gradients.py test_bad_input.py \
                  test_properties.py test_regressions.py test_pruning.py test_wide_lattice.py \
                  test_packed.py test_packed_alignment.py test_alignment.py test_joint.py \
                  test_in_place.py test_factored.py test_factored_bad_input.py test_row_sums.py \
                  test_tdt.py test_multi_blank.py test_duration_joint.py \
                  test_duration_alignment.py) \
                  -k "not xla"
SANITIZED_TESTS := $(addprefix tests/,test_values.py test_arcs.py test_wide_lattice.py \
                   test_packed.py::test_skewed_lattices test_factored.py::test_large_products \
                   test_factored.py::test_small_lattices test_row_sums.py test_tdt.py) -k "not xla"
# Memory is NaN until it is written.
ASAN_OPTIONS := detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=255
AARCH64_TESTS ?= tests/test_targets.py tests/test_second_order.py tests/test_decoding.py \
                 tests/test_pruned_joint.py $(EMULATED_TESTS)
RACE_TESTS := $(addprefix tests/,test_arcs.py test_wide_lattice.py test_packed.py test_alignment.py \
              test_pruning.py test_in_place.py test_packed_alignment.py test_factored.py \
              test_row_sums.py test_tdt.py test_multi_blank.py test_duration_alignment.py) \
              -k "not xla"

# XLA's compiler for CUDA. Apart from the other packages, where JAX would look for a GPU; with the
# assembler that it calls.
GPU_COMPILER := $(VENV)/gpu-compiler

# For the GPU that is there; a list such as 80;90 for others.
CUDA_ARCHITECTURES ?= native
GPU_WORKERS ?= 12
# Then pytest is interrupted, and says what has failed so far, which it does not if it is killed.
GPU_SUITE_SECONDS ?= 480
# The workers share the card: each takes memory as it needs it.
GPU_ENV := XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_CLIENT_MEM_FRACTION=.3

.PHONY: setup test test-cpu test-emulated test-aarch64 test-gpu-programs demo bench docs lint \
        format clean gpu-compiler bench-gpu-memory build-gpu test-gpu suite-gpu sanitize-gpu bench-gpu

$(VENV)/.installed: $(BUILD_INPUTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jax_rnnt needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,examples,dev$(CUDA_EXTRA)]'
	touch $@

setup: $(VENV)/.installed

test: test-cpu test-emulated test-gpu-programs

# Less compiling: what XLA makes need not be fast. Its emitters without MLIR take less time than the
# others, where a jaxlib has both: an unknown flag ends the process.
WITHOUT_MLIR := --xla_cpu_use_fusion_emitters=false
QUICK_COMPILATION = --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
                    $(shell XLA_FLAGS=$(WITHOUT_MLIR) $(BIN)/python -c "import jax; jax.devices()" \
                      >/dev/null 2>&1 && echo $(WITHOUT_MLIR))

# Speed and values with the programs that users get, everything else compiled quickly.
test-cpu: setup
	$(BIN)/python -m pytest tests/test_speed.py
	$(BIN)/python -m pytest -n auto --dist worksteal tests/test_values.py
	XLA_FLAGS="$(QUICK_COMPILATION)" \
	  $(BIN)/python -m pytest -n auto --dist worksteal --durations=25 tests \
	  --ignore=tests/test_speed.py --ignore=tests/test_values.py --ignore=tests/test_gpu_programs.py

# The CUDA kernels, compiled for the CPU: on the test-suite, and on parts of it with sanitizers and
# looking for races.
test-emulated: setup
	XLA_FLAGS="$(QUICK_COMPILATION)" \
	  $(BIN)/python -m pytest -n auto --dist worksteal --backend=cuda-emulated $(EMULATED_TESTS)
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=$(ASAN_OPTIONS) JAX_RNNT_EMULATION_KIND=sanitized \
	  XLA_FLAGS="$(QUICK_COMPILATION)" \
	  $(BIN)/python -m pytest -n auto --backend=cuda-emulated $(SANITIZED_TESTS)
	JAX_RNNT_EMULATION_KIND=races XLA_FLAGS="$(QUICK_COMPILATION)" \
	  $(BIN)/python -m pytest -n auto --backend=cuda-emulated $(RACE_TESTS)

gpu-compiler: $(GPU_COMPILER)/.installed

$(GPU_COMPILER)/.installed: $(VENV)/.installed
	rm -rf $(GPU_COMPILER)
	version=$$($(BIN)/python -c "import jaxlib; print(jaxlib.__version__)") && \
	  $(BIN)/python -m pip install --quiet --no-deps --target $(GPU_COMPILER) \
	  "jax-cuda13-plugin==$$version" "jax-cuda13-pjrt==$$version" \
	  $(if $(CUDA_EXTRA),"nvidia-cuda-nvcc==13.0.*" "nvidia-nvvm==13.0.*")
	touch $@

# On aarch64, which QEMU emulates: under an hour on two cores.
test-aarch64: setup
	$(BIN)/python tests/aarch64.py $(VENV)/aarch64
	XLA_FLAGS="$(QUICK_COMPILATION)" \
	  $(VENV)/aarch64/python -m pytest -n auto --dist worksteal $(AARCH64_TESTS)

# What XLA makes of the losses for a GPU that is not there.
test-gpu-programs: gpu-compiler
	JAX_PLATFORMS=cpu PYTHONPATH=$(GPU_COMPILER) \
	  $(BIN)/python -m pytest -n auto --fail-on-skip tests/test_gpu_programs.py

bench-gpu-memory: gpu-compiler
	JAX_PLATFORMS=cpu PYTHONPATH=$(GPU_COMPILER) \
	  $(BIN)/python benchmarks/gpu_memory.py $(GPU_MEMORY_ARGS)

demo: setup
	$(BIN)/python examples/train_speech.py $(DEMO_ARGS)

bench: setup
	$(BIN)/python benchmarks/suite.py $(BENCH_ARGS)
	$(if $(findstring --quick,$(BENCH_ARGS)),,$(BIN)/python benchmarks/threads.py $(THREADS_ARGS))

# Into site/. It reads the sources and needs no build of them.
docs:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

build-gpu:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
	  --config-settings=build-dir=build/gpu \
	  --config-settings=cmake.define.JAX_RNNT_CUDA=ON \
	  --config-settings='cmake.define.CMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)' \
	  --editable .

test-gpu: suite-gpu sanitize-gpu

suite-gpu: build-gpu
	$(GPU_ENV) timeout --signal=INT $(GPU_SUITE_SECONDS) \
	  $(PYTHON) -m pytest --backend=cuda --fail-on-skip --continue-on-collection-errors \
	  --maxfail=50 --tb=short --quiet -n $(GPU_WORKERS) --dist worksteal $(GPU_TEST_ARGS) tests

sanitize-gpu: build-gpu
	$(PYTHON) tests/sanitize_gpu.py $(SANITIZER_ARGS)

bench-gpu: build-gpu
	$(PYTHON) benchmarks/gpu.py $(GPU_BENCH_ARGS)
	$(PYTHON) benchmarks/joint.py --dtype bfloat16 --classes 500 --time-utterances $(GPU_JOINT_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:
	rm -rf $(VENV) build dist site
