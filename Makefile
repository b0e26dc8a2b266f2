# Every target works from a fresh clone; the virtual environment is .venv.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
export DO_NOT_TRACK ?= true
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export MLFLOW_DISABLE_TELEMETRY ?= true
export DVC_NO_ANALYTICS ?= 1
export GX_ANALYTICS_ENABLED ?= false

.PHONY: help install lock sbom audit demo test check fix docs up down bench drill acceptance

help: ## show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-11s %s\n", $$1, $$2}'

install: .venv/.installed ## create .venv and install everything, each file checked by its hash

.venv/.installed: pyproject.toml locked.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	sed -n '/^setuptools==/,/[^\\]$$/p' locked.txt > .venv/builder.txt
	$(BIN)/pip install -q --no-deps --require-hashes -r .venv/builder.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation --require-hashes -r locked.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@

# tools of a release, apart from what is released
.venv-release/.installed: .ci/tools.txt
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/pip install -q --no-deps --require-hashes -r .ci/tools.txt
	touch $@

lock: .venv-release/.installed ## write locked.txt, the hashes of what constraints.txt pins
	.venv-release/bin/uv pip compile -q --no-deps --generate-hashes --universal --no-annotate --no-header \
		--python-version 3.11.5 constraints.txt -o locked.txt

sbom: .venv-release/.installed ## list all that is installed, as CycloneDX, in dist/sbom.json
	mkdir -p dist
	.venv-release/bin/cyclonedx-py requirements locked.txt --pyproject pyproject.toml --of JSON -o dist/sbom.json

audit: .venv-release/.installed ## ask an advisory database about locked.txt; needs the internet
	.venv-release/bin/pip-audit --strict --no-deps --disable-pip --require-hashes -r locked.txt

demo: install ## run the whole pipeline on the embedded demo set and print where to look
	$(BIN)/onenip run --source demo

test: install ## run the tests, in JOBS processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not slow and not acceptance'

check: install ## format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: install ## repair formatting and what lint can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## build the documentation into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

up: install ## start Prefect, MLflow, a worker and S3 on this machine, print their addresses
	$(BIN)/onenip up

down: ## stop what `make up` started
	$(BIN)/onenip down

bench: install ## run the benchmarks and print their tables
	$(BIN)/python -m benchmarks

drill: install ## repeat kills, damaged files and odd requests, print what went wrong; PARTS="archives stages" chooses
	$(BIN)/python -m benchmarks.drill $(PARTS)

acceptance: install ## the whole product against real servers, end to end
	$(BIN)/python -m pytest -q -m acceptance tests/acceptance
