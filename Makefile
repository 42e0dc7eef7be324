# The four targets people use: up, test, check, bench.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: up test check bench format clean

up: $(STAMP)
	@exec $(BIN)/harbor up --demo

test: $(STAMP)
	$(BIN)/python -m pytest -q --durations=10

check: $(STAMP)
	$(BIN)/ruff format --check cluster tests
	$(BIN)/ruff check cluster tests
	$(BIN)/mypy --strict cluster
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(STAMP)
	$(BIN)/python -m tests.bench

format: $(STAMP)
	$(BIN)/ruff format cluster tests
	$(BIN)/ruff check --fix cluster tests

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Harbor Cluster needs Python 3.11 or later; this is %s. Name another: make PYTHON=python3.11" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench.json
