# Every target sets up .venv by itself from a bare Python 3.11, 3.12 or 3.13.
# PYTHON=/path/to/python3.12 chooses the interpreter.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp
NB_STAMP := $(VENV)/.stamp-notebooks
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3 python,\
	$(shell $(name) -c 'import sys; print(sys.executable) if \
	(3, 11) <= sys.version_info[:2] < (3, 14) else None' 2>/dev/null)))

VERSION := import sys; print(sys.version)

METHOD ?= mdpo
ENV    ?= hopper
SEEDS  ?= 4
STEPS  ?= 1000000
OUT    ?= runs/$(subst /,-,$(ENV))_$(METHOD)
ARGS   ?=
# As many test processes as processors, four at most: each needs about 3 GB.
JOBS   ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); \
	echo $$((n < 4 ? n : 4)))

PYTEST := $(BIN)/python -m pytest $(if $(filter-out 1,$(JOBS)),-n $(JOBS) --dist worksteal)

export MPLBACKEND ?= Agg

.PHONY: help setup train test test-slow lint format bench notebooks clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  make train METHOD=$(METHOD) ENV=$(ENV) SEEDS=$(SEEDS) STEPS=$(STEPS) OUT=$(OUT)"

setup: $(STAMP)  ## Make .venv (any other target does so too)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
	  echo "No Python 3.11, 3.12 or 3.13 found: install one, or: make PYTHON=/path/to/python3"; \
	  exit 1; }
	@# Kept when only versions changed; made anew for another Python.
	@test "$$($(BIN)/python -c '$(VERSION)' 2>/dev/null)" = \
	  "$$('$(PYTHON)' -c '$(VERSION)')" || \
	  { echo "$(PYTHON) -m venv $(VENV)"; '$(PYTHON)' -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[test]'
	@touch $@

$(NB_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[test,notebooks]'
	@touch $@

train: $(STAMP)  ## Train, then draw the curve and one episode (resumes if stopped)
	$(BIN)/rlx train $(METHOD) --env $(ENV) --seeds $(SEEDS) --steps $(STEPS) \
	  --out $(OUT) --resume $(ARGS)
	$(BIN)/rlx plot $(OUT)
	$(BIN)/rlx play $(OUT)
	@echo "Run folder: $(OUT) (curve.png, checkpoints/, metrics.jsonl, episode)"

test: $(STAMP)  ## Run the fast tests (JOBS=1: in one process)
	$(PYTEST) $(ARGS)

test-slow: $(STAMP)  ## Run all tests, the slow ones too
	$(PYTEST) --slow $(ARGS)

lint: $(STAMP)  ## Check style and types
	@status=0; \
	for check in 'ruff format --check' 'ruff check' mypy; do \
	  echo "$$check"; $(BIN)/$$check || status=1; \
	done; \
	exit $$status

format: $(STAMP)  ## Put the code into the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## Measure speed, as ratios within one run
	$(BIN)/python -m experiments.benchmarks $(ARGS)

notebooks: $(NB_STAMP)  ## Execute every notebook from its .py source
	@for source in notebooks/*.py; do \
	  echo "$$source"; \
	  env -u MPLBACKEND $(BIN)/jupytext --to ipynb --execute "$$source" || exit 1; \
	done

clean:  ## Remove .venv and caches; runs/ stays
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
	find rlx envs tests experiments notebooks -name __pycache__ -prune \
	  -exec rm -rf {} +
