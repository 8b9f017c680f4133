# From a fresh clone: `make demo` shows what the package does, `make test` shows that it is right.
# Wanted on the machine: python3 (3.10 or newer) with venv, g++ and make. Everything else goes into
# .venv, which is made once and reused as long as nothing that it was built from has changed.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# The versions that the tests are known to pass with.
PIN    := --constraint constraints.txt
PYTEST_ARGS ?=

# What the installed package is made of; a newer one of these means installing it again.
SOURCES := pyproject.toml setup.py CMakeLists.txt constraints.txt \
  $(shell find src csrc -name '*.py' -o -name '*.pyi' -o -name '*.txt' \
                        -o -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help demo test lint format sanitize bench gpu dist clean

help:
	@echo "make demo      occlusion map of a photo with a trained network, into demo/"
	@echo "make test      the tests; PYTEST_ARGS='-k splice' for some of them"
	@echo "make lint      ruff, mypy, clang-format, import-linter"
	@echo "make format    let ruff and clang-format rewrite the sources"
	@echo "make sanitize  the CPU kernels under the address and undefined-behaviour sanitizers"
	@echo "make bench     the benchmark table, into bench/RESULTS.md"
	@echo "make gpu       tests, sanitizer and benchmarks that need an NVIDIA GPU"
	@echo "make dist      sdist and wheel, into dist/"
	@echo "make clean     remove what the other targets made, .venv included"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and \
	  f"expected Python 3.10 or newer as $(PYTHON), got {v[0]}.{v[1]}; name another: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# One mark per set of extras. pip installs a folder anew each time it is asked to.
$(VENV)/.demo: $(BIN)/python $(SOURCES)
	$(PIP) install --quiet $(PIN) ".[demo]"
	@touch $@

$(VENV)/.dev: $(BIN)/python $(SOURCES)
	$(PIP) install --quiet $(PIN) ".[demo,dev]"
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/backsight occlusion \
	  "$$($(BIN)/python -c 'import skimage, os; print(os.path.dirname(skimage.__file__))')/data/coffee.png" \
	  --model squeezenet --window 32 --stride 8 -o demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(KERNELS)
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(KERNELS)

KERNELS = $(shell find csrc tests -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

sanitize: $(VENV)/.dev
	PYTHON=$(BIN)/python bash tests/sanitize.sh

bench: $(VENV)/.dev
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-columns=median,iqr,rounds $(PYTEST_ARGS)

gpu: $(VENV)/.dev
	PYTHON=$(BIN)/python bash bench/gpu.sh

dist: $(VENV)/.dev
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf $(VENV) build dist demo src/*.egg-info .benchmarks
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench -name __pycache__ -prune -exec rm -rf {} +
