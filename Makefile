# The targets people use: up, test, soak, check, bench, monitor.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Each actor is a process that loads the whole project: where Python may not keep what it has compiled, each compiles it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: up test soak check bench monitor format clean

up: $(STAMP)
	@exec $(BIN)/harbor up --demo

test: $(STAMP)
	$(BIN)/python -m pytest -q --durations=10

# The tests that have a longer version, in that: an hour or more.
soak: $(STAMP)
	HARBOR_SOAK=1 $(BIN)/python -m pytest -q --durations=10 -m soak --timeout 1800

check: $(STAMP)
	$(BIN)/ruff format --check cluster tests grafana helm
	$(BIN)/ruff check cluster tests grafana helm
	$(BIN)/mypy --strict cluster grafana helm tests
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(STAMP)
	$(BIN)/python -m tests.bench

monitor:
	@command -v prometheus >/dev/null || { echo "Prometheus is not installed; on Debian: apt install prometheus"; exit 1; }
	@echo "Prometheus with the rules: http://127.0.0.1:9090 (of the cluster whose admin port is 127.0.0.1:8701; Ctrl-C ends it)"
	@exec prometheus --config.file=grafana/prometheus.yaml --storage.tsdb.path=.prometheus --web.listen-address=127.0.0.1:9090 --log.level=warn

format: $(STAMP)
	$(BIN)/ruff format cluster tests grafana helm
	$(BIN)/ruff check --fix cluster tests grafana helm

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Harbor Cluster needs Python 3.11 or later; this is %s. Name another: make PYTHON=python3.11" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .prometheus bench.json
