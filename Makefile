# Each target works on a fresh clone: it makes its own .venv first.
PYTHON ?= python3
DB ?= sqlite
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
# Hundreds of processes are started by the tests: each would compile the library anew.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help demo test faults check run bench bench-throughput bench-writing bench-waiting bench-costs bench-plot bench-recovery chaos docs format clean

help:  ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(VENV)/.dev: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

demo: $(VENV)/.dev  ## run the shop through kill -9, on SQLite or with DB=postgresql
	$(BIN)/python -m example_flask_app.demo --database $(DB)

run: $(VENV)/.dev  ## serve the example shop on http://127.0.0.1:8000
	$(BIN)/python -m example_flask_app.serve --database $(DB)

test: $(VENV)/.dev  ## run every test on SQLite and on a private PostgreSQL
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

faults: $(VENV)/.dev  ## try every fault at every commit, and print the table
	EDDA_EVERY_FAULT=1 $(BIN)/python -m pytest -q -n auto --dist worksteal tests/faults/test_fault_table.py $(ARGS)

chaos: DB = postgresql
chaos: $(VENV)/.dev  ## kill, pause and restart everything under thousands of orders; DB=sqlite for SQLite
	$(BIN)/python -m tests.chaos --database $(DB) $(ARGS)

check: $(VENV)/.dev  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg --no-cache

format: $(VENV)/.dev  ## write the code as ruff would
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs  ## build the documentation; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: bench-throughput bench-writing bench-waiting bench-costs  ## measure throughput, writing steps, waiting and single costs beside DBOS
	$(MAKE) bench-plot ARGS=

bench-throughput: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py $(ARGS)

bench-writing: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py --step write --concurrency 16 $(ARGS)

bench-waiting: $(VENV)/.dev
	$(BIN)/python benchmarks/waiting.py $(ARGS)

bench-plot: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/plot.py $(ARGS)

bench-costs: $(VENV)/.dev
	$(BIN)/python benchmarks/costs.py $(ARGS)

bench-recovery: $(VENV)/.dev
	$(BIN)/python benchmarks/recovery.py $(ARGS)

clean:  ## remove what was made
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache
