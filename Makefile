# Every target makes the virtual environment it needs; run `make` to see them.
#
#   make test                      with python3
#   make test PYTHON=python3.12    with another Python (3.11 or newer), when .venv is first made
#   make test WORKERS=8            with more test processes

PYTHON  ?= python3
WORKERS ?= 2

PY     := .venv/bin/python
PIP    := $(PY) -m pip --quiet --disable-pip-version-check --no-input
PYTEST := $(PY) -m pytest

# On a GPU: where logs and results go, and the seconds everything may take.
OUT     ?= runs/gpu
LIMIT   ?= 570

# What is installed is remembered in stamp files, so that installing happens once, and again
# when pyproject.toml changes.
PLOT  := .venv/.installed-plot
DEV   := .venv/.installed-dev
CUDA  := .venv/.installed-cuda-test
PEERS := .venv/.installed-peers
BENCH := .venv/.installed-bench
GPU   := .venv/.installed-gpu

.DEFAULT_GOAL := help
.PHONY: help demo test test-cpus test-cuda test-peers notebooks bench bench-quick gpu test-gpu bench-gpu gpu-report rehearse-gpu lint format clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(PLOT) ## train LeNet on the digits that come with numbagrad; results go to runs/demo/
	$(PY) -m numbagrad demo

test: $(DEV) ## CPU tests, the kernels without JIT, a smoke test of the CUDA simulator
	$(PYTEST) -n $(WORKERS) tests numbagrad
	NUMBA_DISABLE_JIT=1 $(PYTEST) -n $(WORKERS) tests/nojit
ifeq ($(shell uname -s),Darwin)
	@echo "No CUDA simulator on macOS: its smoke test is left out."
else
	NUMBA_ENABLE_CUDASIM=1 $(PYTEST) -m smoke tests/cuda/sim tests/cuda/device
endif

# Kernels as compiled for other processors: AVX2, and neither AVX nor FMA. Not on ARM, whose
# processors do not run code for haswell. (The test left out sets NUMBA_CPU_NAME by itself.)
CPUS      := $(if $(filter x86_64 AMD64,$(shell uname -m)),haswell) generic
CPU_TESTS := $(addprefix tests/test_,$(addsuffix .py,\
	simd formulas linalg convolution pooling normalization))

test-cpus: $(DEV) ## part of the CPU tests with kernels as for other, simpler processors
	for cpu in $(CPUS); do \
		echo "NUMBA_CPU_NAME=$$cpu"; \
		NUMBA_CPU_NAME=$$cpu $(PYTEST) -n $(WORKERS) -k 'not follows_the_processor' \
			$(CPU_TESTS) || exit 1; \
	done

test-cuda: $(CUDA) ## CUDA tests without a GPU: simulator, a stand-in driver, every kernel compiled
	NUMBA_ENABLE_CUDASIM=1 $(PYTEST) -n $(WORKERS) tests/cuda/sim tests/cuda/device
	$(PYTEST) tests/cuda/host
	$(PYTEST) -n $(WORKERS) tests/cuda/offline

test-peers: $(PEERS) ## the same numbers as PyTorch
	@$(PY) -c 'import torch; print("PyTorch", torch.__version__)'
	$(PYTEST) tests/peers

notebooks: $(DEV) ## execute every notebook; the files stay as they are
	$(PYTEST) --nbmake --nbmake-timeout=600 notebooks/*.ipynb

bench: $(BENCH) ## speed against PyTorch, JAX and NumPy, written to benchmarks/results and the README
	$(PY) -m benchmarks
	$(PY) -m benchmarks.scaling

bench-quick: $(BENCH) ## a part of it on one thread, printed only
	$(PY) -m benchmarks --quick
	$(PY) -m benchmarks.scaling --quick

# `python3 -m benchmarks.gpu` does the same with what another Python has: see CONTRIBUTING.md.
gpu: $(GPU) ## on a GPU: all of the next two, the most important first, in ten minutes
	$(PY) -m benchmarks.gpu --out $(OUT) --seconds $(LIMIT) --publish

test-gpu: $(GPU) ## on a GPU: the tests, a soak of two minutes, compute-sanitizer
	$(PY) -m benchmarks.gpu --out $(OUT) --seconds 1800 \
		--only smoke --only tests --only soak --only sanitizer

bench-gpu: $(GPU) ## on a GPU: speed against PyTorch and CuPy, to benchmarks/results and the README
	$(PY) -m benchmarks.gpu --out $(OUT) --only bench --only speedrun --publish

gpu-report: $(CUDA) ## without a GPU: registers, shared memory and occupancy of each CUDA kernel
	$(PY) -m benchmarks.gpu.kernels

rehearse-gpu: $(PEERS) ## what `make gpu` runs, on the simulator at tiny sizes
	$(PY) -m benchmarks.gpu --out runs/rehearsal --rehearse

lint: $(DEV) ## code style, formatting, and the floors
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports --no-logo

format: $(DEV) ## format the code and mend what ruff can mend
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove caches and build outputs (keeps .venv and runs)
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find numbagrad tests benchmarks notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) \
		-prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf .venv

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "numbagrad needs Python 3.11 or newer. Choose one: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear .venv || { \
		rm -rf .venv; \
		echo "Could not make .venv: this Python has no working venv module (on Debian and" \
			"Ubuntu: install python3-venv)." >&2; \
		exit 1; }

define install
	@echo "Installing numbagrad[$(1)] into .venv; the first time this takes a few minutes"
	@$(PIP) install --editable '.[$(1)]'
	@touch $@
endef

# dev holds plot, so a demo after a test installs nothing.
$(PLOT): pyproject.toml | $(PY)
	$(call install,plot)

$(DEV): pyproject.toml | $(PY)
	$(call install,dev)
	@touch $(PLOT)

$(CUDA): pyproject.toml $(DEV) | $(PY)
	$(call install,dev$(comma)cuda-test)

$(PEERS): pyproject.toml $(DEV) | $(PY)
	$(call install,dev$(comma)peers)

$(BENCH): pyproject.toml $(DEV) | $(PY)
	$(call install,dev$(comma)bench)
	@touch $(PEERS)

$(GPU): pyproject.toml $(DEV) | $(PY)
	$(call install,dev$(comma)gpu)

comma := ,
