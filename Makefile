.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help plan ui test lint types imports pytest bench coefficients clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

plan: $(STAMP) ## set up and answer the bundled question; writes out/plan.csv
	@mkdir -p out
	$(PY) -m planner plan data/questions/llama-70b-fp8.toml --csv out/plan.csv

ui: $(STAMP) ## set up and open the dashboard
	$(PY) -m planner ui

test: lint types imports pytest ## set up and run every check

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP)
	$(PY) -m mypy

imports: $(STAMP)
	$(VENV)/bin/lint-imports

pytest: $(STAMP)
	$(PY) -m pytest

bench: $(STAMP) ## measure speed and size against the budgets
	$(PY) -m benchmarks

coefficients: $(STAMP) ## refit the operator coefficients: make coefficients OPERATORS=DIR
	$(PY) -m planner fit operators $(OPERATORS) --calibration-dir calibration

clean: ## remove what the other targets made
	rm -rf $(VENV) out
