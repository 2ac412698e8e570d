# make test, make demo: each sets up what it needs in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(wildcard cpp/*)

.PHONY: setup test demo bench lint format clean

$(VENV)/.installed: $(BUILD_INPUTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jax_rnnt needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,examples,dev]'
	touch $@

setup: $(VENV)/.installed

test: setup
	$(BIN)/python -m pytest -n auto --dist worksteal tests

demo: setup
	$(BIN)/python examples/train_speech.py $(DEMO_ARGS)

bench: setup
	$(BIN)/python benchmarks/rnnt_loss.py $(BENCH_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror cpp/*.h cpp/*.cc
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i cpp/*.h cpp/*.cc

clean:
	rm -rf $(VENV) build dist
