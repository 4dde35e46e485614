# Two commands do everything on a fresh machine: `make serve` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UV_VERSION := 0.13.9
PYTEST := $(BIN)/python -m pytest
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile

.PHONY: help install serve test tests-without-ray tests-with-ray test-quick check-minimal test-ray lint format lock models measure quantise bench chaos soak bench-reaction bench-prediction \
	bench-simulation clean

help:  ## print this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "%-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## create a virtual environment with the locked versions

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@# Compiled at once: replicas that start together would each compile the libraries.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode \
		--requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@# Machine code of the loops over masks, which each replica would compile at its first start.
	$(BIN)/python -c 'from serve_app.engines.sam import cut; from serve_app.http import formats; \
		cut.warm_up(); formats.warm_up()'
	@touch $(INSTALLED)

serve: $(INSTALLED)  ## fetch weights, start Ray, demonstrate, serve; PORT=8001, ONCE=1 to exit afterwards
	@$(BIN)/python -m serve_app serve --demo $(if $(ONCE),--once) $(if $(PORT),--port $(PORT)) $(if $(CONFIG),--config $(CONFIG))

test: $(INSTALLED)  ## run all tests, with real weights and real Ray processes
	@# Both at once: the tests that start Ray mostly wait, for replicas to start.
	@$(MAKE) --no-print-directory --jobs 2 --keep-going tests-without-ray tests-with-ray

tests-without-ray: $(INSTALLED)
	$(PYTEST) $(PARALLEL) --ignore=tests/contract --ignore=tests/cluster

tests-with-ray: $(INSTALLED)
	@# In one process, as there is one cluster at a time; printed at the end, not between the others.
	@mkdir -p out; $(PYTEST) tests/contract tests/cluster >out/tests-with-ray.txt 2>&1; \
		status=$$?; cat out/tests-with-ray.txt; exit $$status

test-quick: $(INSTALLED)  ## in a minute: the tests that need neither weights, Ray nor HAProxy, without slow ones
	$(PYTEST) $(PARALLEL) -m "not weights and not cluster and not slow" \
		--ignore=tests/golden --ignore=tests/cluster --ignore=tests/front

check-minimal: $(INSTALLED)  ## install a wheel without extras and serve configs/local.yaml with it (5 minutes)
	$(BIN)/python -m tests.packaging.minimal

test-ray: $(INSTALLED)  ## run the contract tests with another Ray; RAY=2.59.0
	@test -n "$(RAY)" || { echo "name a version: make test-ray RAY=2.59.0"; exit 1; }
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python build/ray-$(RAY)
	$(BIN)/uv pip install --quiet --python build/ray-$(RAY)/bin/python --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python build/ray-$(RAY)/bin/python --no-deps --editable . ray==$(RAY)
	PYTHONPATH=$(CURDIR) build/ray-$(RAY)/bin/python -m pytest tests/contract/ray

lint: $(INSTALLED)  ## run ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## format and fix with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

models: $(INSTALLED)  ## known models, sources of their weights, and their state
	@$(BIN)/python -m serve_app models

measure: $(INSTALLED)  ## measure cost and quality of each variant on this host; CONFIG=..., QUICK=1
	@$(BIN)/python -m serve_app measure $(if $(QUICK),--quick) $(if $(CONFIG),--config $(CONFIG))

quantise: $(INSTALLED)  ## build an int8 version of vit_t and compare the two; IMAGES=folder to calibrate on
	@$(BIN)/python -m serve_app quantise $(if $(IMAGES),--images $(IMAGES)) $(if $(CONFIG),--config $(CONFIG))

lock: $(INSTALLED)  ## recompile requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
		--extra dev --extra tracing --generate-hashes --output-file requirements.lock pyproject.toml

bench: $(INSTALLED)  ## benchmark this service and its peers (25 minutes); SECTIONS="a b", QUICK=1, URL=..., IMAGES=...
	@$(BIN)/python -m serve_app bench $(SECTIONS) $(if $(QUICK),--quick) $(if $(CONFIG),--config $(CONFIG)) \
		$(if $(URL),--url $(URL)) $(if $(IMAGES),--images $(IMAGES))

chaos: $(INSTALLED)  ## fault injection: overload, kills, Redis failures, slow clients, ... (25 minutes); NAMES="kills drain", QUICK=1
	$(BIN)/python -m tests.chaos $(NAMES) $(if $(QUICK),--quick) --out out/chaos.md

soak: $(INSTALLED)  ## long run at half load, checks for memory growth; MINUTES=30
	$(BIN)/python -m tests.chaos soak soak_leak $(if $(MINUTES),--minutes $(MINUTES)) --out out/soak.md

bench-reaction: $(INSTALLED)  ## reaction time of the autoscaler to a shift between variants (9 minutes)
	$(BIN)/python -m tests.cluster.reaction

bench-prediction: $(INSTALLED)  ## compare the simulator's latency with the real service (6 minutes)
	$(BIN)/python -m tests.cluster.prediction

bench-simulation: $(INSTALLED)  ## run router and scaling policy over all simulated traces (40 minutes)
	$(BIN)/python -m serve_app simulate --out out/simulation --json out/simulation.json

clean:  ## remove installed and generated files
	rm -rf $(VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
