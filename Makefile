# Two commands do everything on a fresh machine: `make serve` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UV_VERSION := 0.13.9

.PHONY: help install serve test test-quick lint format lock models measure quantise bench chaos soak bench-reaction bench-prediction \
	bench-simulation clean

help:  ## this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "%-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## a virtual environment with the locked versions

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@# Compiled at once: replicas that start together would each compile the libraries.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode \
		--requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(INSTALLED)

serve: $(INSTALLED)  ## weights, Ray, the graph, a demonstration; PORT=8001, ONCE=1 to stop by itself
	@$(BIN)/python -m serve_app serve --demo $(if $(ONCE),--once) $(if $(PORT),--port $(PORT)) $(if $(CONFIG),--config $(CONFIG))

test: $(INSTALLED)  ## all tests, with real weights and real Ray processes
	$(BIN)/python -m pytest

test-quick: $(INSTALLED)  ## in a minute: the tests that need neither weights nor Ray, less the slow ones
	$(BIN)/python -m pytest -m "not weights and not cluster and not slow" --ignore=tests/golden --ignore=tests/cluster

lint: $(INSTALLED)  ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## let ruff format and mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

models: $(INSTALLED)  ## the known models, where their weights are, and their state
	@$(BIN)/python -m serve_app models

measure: $(INSTALLED)  ## what each variant costs and how good it is here; CONFIG=..., QUICK=1
	@$(BIN)/python -m serve_app measure $(if $(QUICK),--quick) $(if $(CONFIG),--config $(CONFIG))

quantise: $(INSTALLED)  ## an int8 version of vit_t, held against it; IMAGES=folder to calibrate on
	@$(BIN)/python -m serve_app quantise $(if $(IMAGES),--images $(IMAGES)) $(if $(CONFIG),--config $(CONFIG))

lock: $(INSTALLED)  ## compile requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
		--extra dev --extra redis --extra tracing --extra workshop --generate-hashes --output-file requirements.lock pyproject.toml

bench: $(INSTALLED)  ## ours and the peers side by side (25 minutes); SECTIONS="a b", QUICK=1, URL=..., IMAGES=...
	@$(BIN)/python -m serve_app bench $(SECTIONS) $(if $(QUICK),--quick) $(if $(CONFIG),--config $(CONFIG)) \
		$(if $(URL),--url $(URL)) $(if $(IMAGES),--images $(IMAGES))

chaos: $(INSTALLED)  ## overload, kills, a failing Redis, slow clients, ...: one table (25 minutes); NAMES="kills drain", QUICK=1
	$(BIN)/python -m tests.chaos $(NAMES) $(if $(QUICK),--quick) --out out/chaos.md

soak: $(INSTALLED)  ## half load for long: does memory grow?; MINUTES=30
	$(BIN)/python -m tests.chaos soak soak_leak $(if $(MINUTES),--minutes $(MINUTES)) --out out/soak.md

bench-reaction: $(INSTALLED)  ## how fast replicas follow a load that moves between variants (9 minutes)
	$(BIN)/python -m tests.cluster.reaction

bench-prediction: $(INSTALLED)  ## the simulator's service times against the real service (6 minutes)
	$(BIN)/python -m tests.cluster.prediction

bench-simulation: $(INSTALLED)  ## router and scaling policy over all simulated traces (40 minutes)
	$(BIN)/python -m serve_app simulate --out out/simulation --json out/simulation.json

clean:  ## remove what was installed and made here
	rm -rf $(VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
