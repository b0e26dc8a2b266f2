# Every target works from a fresh clone; the virtual environment is .venv.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
export DO_NOT_TRACK ?= true
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export MLFLOW_DISABLE_TELEMETRY ?= true
export DVC_NO_ANALYTICS ?= 1
export GX_ANALYTICS_ENABLED ?= false

.PHONY: help install demo test check fix docs up down bench acceptance

help: ## show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-11s %s\n", $$1, $$2}'

install: .venv/.installed ## create .venv and install everything, locked

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: install ## run the whole pipeline on the embedded demo set and print where to look
	$(BIN)/onenip run --source demo

test: install ## run the tests, in JOBS processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m 'not slow and not acceptance'

check: install ## format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: install ## repair formatting and what lint can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## build the documentation into site/; a broken link fails
	$(BIN)/python -m mkdocs build --quiet

up: install ## start Prefect, MLflow, a worker and S3 on this machine, print their addresses
	$(BIN)/onenip up

down: ## stop what `make up` started
	$(BIN)/onenip down

bench: install ## run the benchmarks and print their tables
	$(BIN)/python -m benchmarks

acceptance: install ## the whole product against real servers, end to end
	$(BIN)/python -m pytest -q -m acceptance tests/acceptance
