# `make figures` and `make test` each work alone, given only Python >= 3.11 and make:
# they create .venv, install the versions of constraints.txt, and run. Stamp files make a second call immediate.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
PYTEST_FLAGS ?= -n auto
FIGURES ?=
FIGURE_FLAGS ?=
SOAK_FLAGS ?=
BENCH_FLAGS ?=
BRIDGE_FLAGS ?= --workers 2
NOTEBOOKS ?=

.PHONY: setup setup-test setup-bench figures notebooks test lint golden soak bench bridge clean

setup: $(VENV)/.installed
setup-test: $(VENV)/.installed-test
setup-bench: $(VENV)/.installed-bench

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 found; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# setuptools comes from the constraints as well, so the editable build uses it rather than a fresh isolated one.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) setuptools
	$(PIP_INSTALL) --no-build-isolation -e .
	@touch $@

# torch first: the other test tools are small, and nothing but the tests needs it.
$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) --no-build-isolation -e ".[test,torch,hf,dask,xarray,notebooks]"
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-test
	$(PIP_INSTALL) --no-build-isolation -e ".[bench]"
	@touch $@

figures: setup
	$(BIN)/quadlab figures $(FIGURES) $(FIGURE_FLAGS)

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/mypy

# The kernels are compiled first, once, and not by each of pytest's workers.
test: lint
	$(BIN)/quadlab warmup
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# Runs the notebooks and writes their outputs; make notebooks NOTEBOOKS=01_first_comparison for one.
notebooks: setup-test
	$(BIN)/python tests/render_notebooks.py $(NOTEBOOKS)

# The long random search for a violated bound; the quick suite runs a small part of it.
soak: setup-test
	$(BIN)/python tests/soak.py $(SOAK_FLAGS)

# Beside NumPy, torch and JAX + optax, and against the machine; writes quadlab/recorded/bench.json and the
# README's tables from it. About ten minutes, on a machine that does nothing else.
bench: setup-bench
	$(BIN)/quadlab warmup
	$(BIN)/python tests/bench.py $(BENCH_FLAGS)

# The measurements and trainings of real models that figures draw from, into quadlab/recorded/bridge.json: half an
# hour of one idle core. What build/bridge/ holds is not made again; `make clean` forgets it.
bridge: setup-test
	$(BIN)/python -m quadlab.bridge.study $(BRIDGE_FLAGS)

# Rewrites the golden predictions; an update states its reason: make golden REASON="..."
golden: setup-test
	@test -n "$(REASON)" || { echo 'make golden: give the reason, make golden REASON="..."' >&2; exit 1; }
	$(BIN)/python tests/make_golden.py --reason "$(REASON)"

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find quadlab tests -name __pycache__ -type d -prune -exec rm -rf {} +
