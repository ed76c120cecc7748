# `make run` and `make test` do all set-up themselves; they need Python 3.11 or 3.12 and make, nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
STAMP := $(VENV)/.installed
MLFLOW_TRACKING_URI ?= sqlite:///mlflow.db

export MLFLOW_DISABLE_TELEMETRY ?= true
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: run test check audit docs setup ui lock clean

run: export MLFLOW_TRACKING_URI := $(MLFLOW_TRACKING_URI)
run: export MLFLOW_EXPERIMENT_NAME ?= dinomaly-hd
run: setup  ## train and evaluate on the simulated maps, in MLflow
	@$(BIN)/python -m dinomaly_hd.runs.project_environment
	PATH="$(CURDIR)/$(BIN):$$PATH" mlflow run . -e horizontal -P seed=42

test: check  ## everything that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=30 --durations-min=5 tests

check: setup  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: setup  ## the packages: pins, hashes, sources, refused versions, known weaknesses where they can be looked up
	$(BIN)/python -m benchmarks.audit

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	  || { echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 64; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --compile-bytecode --require-hashes requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --no-deps --no-build-isolation --editable .
	$(BIN)/python -m dinomaly_hd.runs.project_environment
	touch $(STAMP)

docs: setup  ## the pages of docs/ as a site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

ui:  ## MLflow's pages, on this machine only
	@MLFLOW_TRACKING_URI=$(MLFLOW_TRACKING_URI) $(BIN)/python -m dinomaly_hd.runs.pages
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --workers 1 --host 127.0.0.1 --port 5000 \
	  --backend-store-uri $(MLFLOW_TRACKING_URI)

lock:  ## write requirements.lock anew
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --all-extras --no-header \
	  --no-emit-index-url pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info python_env.yaml
