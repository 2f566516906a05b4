# Two commands on a fresh machine: `make run` and `make test`. Each sets up .venv by itself, only when needed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt

# Tests start dozens of processes; without bytecode each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-extra test-all docs bench audit lint format clean

help: ## show these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv
	@echo "installing the pinned packages into .venv: a minute or two"

.venv/.core: .venv/pyvenv.cfg pyproject.toml .ci/constraints.txt
	$(PIP) --editable '.[local,serve]'
	@touch $@

.venv/.dev: .venv/pyvenv.cfg pyproject.toml .ci/constraints.txt
	$(PIP) --editable '.[dev,local]'
	@touch .venv/.core $@

run: .venv/.core ## set up (with the extras local and serve) and run the main job; more with ARGS="experiment=paper"
	$(BIN)/python -m dcdt.run $(ARGS)

test: .venv/.dev ## set up, check style and types, and run the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not extra and not gpu"

test-slow: .venv/.dev ## run the slow tests
	$(BIN)/pytest -n 2 --dist loadfile -m "slow and not extra and not gpu"

test-extra: .venv/.dev ## run the notebooks, and what needs environments of its own: DCDT_RAY_PYTHON, DCDT_FLOWER, DCDT_MOTO_SERVER
	$(PIP) --editable '.[notebooks]'
	$(BIN)/pytest -m extra

test-all: test test-slow ## everything that runs without a GPU

audit: .venv/.dev ## look for insecure calls in the code and known vulnerabilities of the pinned packages
	$(PIP) --editable '.[audit]'
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive dcdt baselines
	$(BIN)/pip-audit --requirement .ci/constraints.txt --no-deps --disable-pip --progress-spinner off

docs: .venv/.dev ## build the docs site, with the API reference, into build/site
	$(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

bench: .venv/.dev ## quick benchmarks, a few minutes; results in outputs/bench, the full ones: docs/performance.md
	$(BIN)/python benchmarks/quick.py

lint: .venv/.dev ## style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev ## rewrite the files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment and caches; outputs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
