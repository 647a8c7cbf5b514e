PYTHON ?= python3
PYTHONS ?= python3.12 python3.13
VENV := .venv
DOCS := .venv-docs
DIST := .venv-dist
BIN := $(VENV)/bin
# Nothing runs the benchmarks in a test, so that their use of hfadapt is checked by its types at least.
BENCHMARKS := $(wildcard benchmarks/*.py) $(addprefix benchmarks/speed/, prepare.py score.py run_hfadapt.py)
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: install demo test test-all test-told test-slow test-installed test-lowest test-pythons lint docs dist fix clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: install  ## four adapters on this machine, in a few minutes
	$(BIN)/hfadapt run recipes/sentiment.yaml

test: install  ## offline, a few minutes on two cores
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not long and not slow and not gpu"

test-all: install  ## what CI runs: offline, with the tests of more than half a second
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not gpu"

test-told: install  ## notebooks, and the blocks of README and docs: fetches samples once; a quarter of an hour
	$(BIN)/python -m pytest -q -n 2 --dist load -m "slow and not gpu" tests/slow/test_notebooks.py tests/docs

test-slow: install  ## with the sample models; fetches them once
	$(BIN)/python -m pytest -q -m "slow and not gpu"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(BENCHMARKS)
	$(BIN)/lint-imports

$(DOCS)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt mkdocs-material
	@touch $@

docs: install $(DOCS)/installed  ## the site, into build/site; a warning is an error
	$(BIN)/python docs/make_site.py build/docs
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict

$(DIST)/installed: constraints.txt
	$(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python -m pip install --quiet --constraint constraints.txt build twine
	@touch $@

dist: $(DIST)/installed  ## sdist and wheel in dist/, checked
	rm -rf dist
	$(DIST)/bin/python -m build
	$(DIST)/bin/twine check --strict dist/*

test-installed: install dist  ## the wheel, installed outside the checkout, on two dozen test files
	$(BIN)/python benchmarks/installed.py dist/hfadapt-*.whl

test-pythons:  ## as `make test`, with the newer Pythons, each in an environment of its own
	for python in $(PYTHONS); do $(MAKE) test PYTHON=$$python VENV=.venv-$$python || exit 1; done

test-lowest: install  ## the oldest packages that pyproject.toml allows
	$(BIN)/python benchmarks/lowest.py

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(PYTHONS:%=.venv-%) $(DOCS) $(DIST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
