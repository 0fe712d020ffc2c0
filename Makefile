# Everything starts from a virtual environment that this file makes; nothing else of the machine is touched.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
ONLY ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check bench lab report clean distclean gallery

help: ## list what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1	\2/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; install Python 3.11 or newer, or say make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; say make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) has no venv; on Debian: apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV) …"; $(PYTHON) -m venv $(VENV); }
	@echo "installing the packages of constraints.txt (about a minute, 1 GB) …"
	@if command -v uv >/dev/null; then \
	    VIRTUAL_ENV=$(VENV) uv pip install --quiet --constraint constraints.txt --editable '.[notebook,test,eventsourcing,cluster]'; \
	else \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[notebook,test,eventsourcing,cluster]'; \
	fi
	@touch $@

demo: $(STAMP) ## the main job on an embedded PostgreSQL: about a minute and a half, a verdict, a report
	@$(BIN)/eventcore-lab run 00-store-benchmark; code=$$?; \
	 case $$code in 0|1|3|5) echo "next: make lab opens JupyterLab on the notebooks; eventcore-lab run --help runs them with your own store";; \
	 *) exit $$code;; esac

test: check ## every test, after the checks (one process more than cores: many tests wait)
	@$(BIN)/python -m pytest --dist worksteal \
	    -n $$($(BIN)/python -c 'import os; print(min(4, len(os.sched_getaffinity(0)) + 1) if hasattr(os, "sched_getaffinity") else 4)')

check: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "make: some files are not formatted; $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy

bench: $(STAMP) ## figures as ratios within one run, to reports/bench.json (ONLY=stores picks some)
	@$(BIN)/python -m tests.bench $(ONLY)

lab: $(STAMP) ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir=notebooks $$([ "$$(id -u)" = 0 ] && echo --allow-root) $(ARGS)

report: $(STAMP) ## rebuild the index of all reports
	@$(BIN)/eventcore-lab report

gallery: $(STAMP) ## run the main job and renew the pictures that the README shows
	@$(BIN)/python -m tests.gallery

clean: ## remove results, reports and caches, keep the environment
	@rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache data/lab.duckdb data/lab.duckdb.wal data/spool
	@find reports -mindepth 1 -maxdepth 1 ! -name gallery -exec rm -rf {} +
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove the environment as well
	@rm -rf $(VENV)
