# Two commands for people and for CI. Everything goes into .venv; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
# Two threads that wait for each other cost more than they give where tests run side by side.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow lint types clean

demo: .venv/installed
	$(BIN)/thalweg fit digits

test: .venv/tested lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/tested
	$(BIN)/python -m pytest -m slow

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/tested
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Thalweg needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/tested: pyproject.toml .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build src/*.egg-info
