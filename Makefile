# Everything runs in .venv, which `make setup` makes from pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
TORCH ?=
WORKERS ?= 2

.PHONY: help setup again run test test-trackers check bench soak report results status docs clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## make .venv with all that runs and tests need: make setup TORCH=2.11.*

# with another TORCH than that of before it is made again
$(VENV)/ready: pyproject.toml $(if $(TORCH),$(if $(filter $(TORCH),$(shell cat $(VENV)/ready 2>&1)),,again))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "sat needs Python 3.11 or newer; name one: make PYTHON=python3.12 setup"; exit 2; }
	@echo "installing into $(VENV), once: torch and the rest, 6 GB with CUDA, some minutes;"
	@echo "in another environment, pip install -e . does the same"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade --disable-pip-version-check pip || true  # a newer one shows progress
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[sweep,optuna,dev]' $(if $(TORCH),'torch==$(TORCH)')
	@echo '$(TORCH)' > $@

again:

run: setup ## train, attack and record a run: make run ARGS="activation=gelu attack.steps=2"
	@$(BIN)/python -m sat.run $(ARGS)

test: setup ## run the tests: make test ARGS="-k attack"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

test-trackers: setup ## test W&B and MLflow, offline, with their packages (900 MB) in .venv
	@$(BIN)/python -m pip install --quiet --editable '.[wandb,mlflow]'
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_trackers.py $(ARGS)

check: setup ## lint, format and types (ruff, mypy)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup ## time training steps against the machine's limit: make bench ARGS="--compile"
	@$(BIN)/python scripts/benchmark.py --batch 32 --steps 0,1,2 --rounds 3 $(ARGS)

soak: setup ## kills, command lines and damaged files at random: make soak ARGS=--many
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.crash $(ARGS)

report: setup ## tables and figures of the runs in outputs: make report ARGS="--to FOLDER"
	@$(BIN)/python scripts/report.py outputs $(ARGS)

results: setup ## rebuild docs/results.md from its evidence: make results NEW=outputs/runs.jsonl
	$(if $(NEW),@$(BIN)/python scripts/report.py $(NEW) --keep docs/results/runs.jsonl)
	@$(BIN)/python scripts/report.py docs/results/runs.jsonl --to docs/results --page docs/results.md
	@$(BIN)/python scripts/quote.py

status: setup ## list the runs in outputs: finished, running, stopped, failed
	@$(BIN)/python scripts/report.py --status outputs

docs: setup ## build the site of docs/, with the reference: site/index.html
	@$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@echo "building site/index.html, half a minute"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

clean: ## remove what can be made again; outputs/ and data/ stay
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
