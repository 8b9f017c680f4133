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

# What the compiled module and the environment are made of; a newer one means installing again.
NATIVE  := pyproject.toml setup.py CMakeLists.txt constraints.txt \
  $(shell find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
PACKAGE := $(shell find src -name '*.py' -o -name '*.pyi' -o -name '*.txt' -o -name '*.html')

.PHONY: help demo test lint format sanitize bench bench-large docs gpu dist clean

help:
	@echo "make demo      occlusion map of a photo with a trained network, into demo/"
	@echo "make test      the tests; PYTEST_ARGS='-k splice' for some of them"
	@echo "make lint      ruff, mypy, clang-format, import-linter"
	@echo "make format    let ruff and clang-format rewrite the sources"
	@echo "make sanitize  the CPU kernels under the address and undefined-behaviour sanitizers"
	@echo "make bench     the benchmark table, into bench/RESULTS.md"
	@echo "make bench-large  the same for a large image, into bench/results/large.json (half an hour)"
	@echo "make docs      the pictures of docs/deconvolution.md and docs/gallery.md"
	@echo "make gpu       tests, sanitizer and benchmarks that need an NVIDIA GPU"
	@echo "make dist      sdist and wheel, into dist/"
	@echo "make clean     remove what the other targets made, .venv included"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and \
	  f"expected Python 3.10 or newer as $(PYTHON), got {v[0]}.{v[1]}; name another: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# Marks of what is installed: for users, a copy of the package; for development, with all the tools,
# the sources themselves (changed Python needs no new install). The demo takes what is there.
$(VENV)/.demo: $(BIN)/python $(NATIVE) $(PACKAGE)
	$(PIP) install --quiet $(PIN) ".[demo]"
	@touch $@

$(VENV)/.dev: $(BIN)/python $(NATIVE)
	$(PIP) install --quiet $(PIN) --editable ".[demo,dev]"
	@touch $@

demo: $(if $(wildcard $(VENV)/.dev),$(VENV)/.dev,$(VENV)/.demo)
	$(BIN)/backsight occlusion \
	  "$$($(BIN)/python -c 'import skimage, os; print(os.path.dirname(skimage.__file__))')/data/coffee.png" \
	  --model squeezenet --window 32 --stride 8 -o demo

# Most tests are Python's work, so one process a core; each op's tests set its threads themselves.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

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

bench-large: $(VENV)/.dev
	$(BIN)/python -m pytest bench/large_maps.py --benchmark-only $(PYTEST_ARGS)

docs: $(VENV)/.dev
	$(BIN)/python docs/deconvolution.py
	for script in docs/gallery/make_*.py; do $(BIN)/python $$script || exit 1; done

gpu: $(VENV)/.dev
	PYTHON=$(BIN)/python bash bench/gpu.sh

# The wheel is built from the sdist, and tried without the sources.
dist: $(VENV)/.dev
	rm -rf dist build/wheel
	$(BIN)/python -m build --outdir dist .
	$(PIP) install --quiet --no-deps --target build/wheel dist/*.whl
	cd build && PYTHONPATH=wheel ../$(BIN)/python -c "import backsight, backsight.ops; \
	  from backsight import zoo; assert 'wheel' in backsight.__file__; \
	  assert len(zoo.imagenet_classes()) == 1000; print('the wheel imports')"

clean:
	rm -rf $(VENV) build dist demo src/*.egg-info src/backsight/_C*.so .benchmarks
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench -name __pycache__ -prune -exec rm -rf {} +
