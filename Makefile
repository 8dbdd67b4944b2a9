# Requires CPython >= 3.11, git and make. Everything else is installed into .venv. `make` lists the targets.
#
# Settings:  PYTHON=/path/to/python3   the Python for .venv (default: see .ci/pythons)
#            ARGS='-k gate -x'         options for pytest, the demo or the benchmarks
#            MINUTES=60                duration of `make torture`

VENV   ?= .venv
PYTHON ?=
ARGS   ?=
MINUTES ?= 10
export ARGS

# Compile modules once, and not at each of the thousands of starts of Python.
export PYTHONDONTWRITEBYTECODE :=

# All paths are relative, so that the path of the checkout may contain spaces.
py := $(VENV)/bin/python

# Stamps of what is installed into .venv when a target needs it: the package; what tests need; linters.
package := $(VENV)/.installed
tests   := $(VENV)/.installed-test
linters := $(VENV)/.installed-lint
pip      = $(py) -m pip install --quiet --quiet --disable-pip-version-check

# Two more than the number of processors: some tests wait for a clock, and none depends on the load of the machine.
workers = $(shell echo $$(($$(nproc) + 2)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

.PHONY: FORCE help venv demo demo-dtool test test-hosts test-all test-nfs test-gluster model torture lint format bench bench-fetching build clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

venv: $(tests) $(linters) ## create .venv with this package (editable), test dependencies and linters

# Also out of date if its Python does not exist any more. Removes only a virtual environment.
$(package): setup.cfg setup.py pyproject.toml $(shell test -x "$(py)" || echo FORCE)
	@set -e; [ -x "$(py)" ] && [ -e "$@" ] || { \
	  chosen=$$(sh .ci/pythons "$(PYTHON)"); \
	  printf '%s\n' "$$chosen" | { read -r version module path; \
	    echo "creating $(VENV) with Python $$version ($$path)"; \
	    if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi; \
	    "$$path" -m "$$module" "$(VENV)" >/dev/null; }; }
	@echo "installing sccache-dtool into $(VENV)"
	@$(pip) --no-compile --editable . # takes a third of the time; modules are compiled when they are needed
	@touch $@
FORCE:

$(tests) $(linters): $(VENV)/.installed-%: $(package)
	@echo "installing sccache-dtool[$*] into $(VENV)"
	@$(pip) --editable '.[$*]'
	@touch $@

demo: $(package) ## show what the program does, in a temporary directory
	@$(py) docs/demo.py $(ARGS)

demo-dtool: $(tests) ## show what the program does for users of dtool
	@$(py) docs/demo_dtool.py $(ARGS)

# $SCRATCH: where the tests create their directories: in `memory` if there is space, or on a `disk`.
test: $(tests) ## run the tests that need only this machine, on all processors
	@SCRATCH=$${SCRATCH:-memory} $(py) -m pytest -q -m 'not lab' --numprocesses $(workers) --dist worksteal $(ARGS)

test-hosts: $(tests) ## run the tests on several kernels (NFS) and on a Slurm cluster (root, Debian)
	@$(py) -m pytest -q -m lab --numprocesses 3 --dist loadfile $(ARGS)

test-nfs: $(tests) ## run the long tests on real NFS, with all versions of the protocol (root, Debian)
	@bash .ci/packages nfs
	@PYTHONPATH=tests $(py) -m nfs $(ARGS)

test-all: ## run `make test` with every CPython >= 3.11 on this machine
	@sh .ci/test-all

test-gluster: $(tests) ## run the tests on GlusterFS: two clients of a replicated volume (root, Debian)
	@bash .ci/packages gluster
	@$(py) -m pytest -q tests/gluster $(ARGS)

model: $(tests) ## explore the model of the protocol, and write the figures into the docs
	@PYTHONPATH=tests $(py) -m model

torture: $(tests) ## run random orders of steps with faults for MINUTES=…, and write the figures into the docs
	@PYTHONPATH=tests $(py) -m races.torture $(MINUTES) $(ARGS)

lint: $(tests) $(linters) ## check style, types, and the import contract
	@status=0; \
	$(py) -m ruff check --quiet --output-format concise || status=1; \
	$(py) -m ruff format --check --quiet --output-format concise || status=1; \
	$(py) -m mypy --no-error-summary || status=1; \
	found=$$($(VENV)/bin/lint-imports --no-logo) || { printf '%s\n' "$$found"; status=1; }; \
	[ $$status != 0 ] || echo "style, types and imports are in order"; \
	exit $$status

format: $(linters) ## format the code, and fix what ruff can fix safely
	@$(py) -m ruff check --quiet --fix-only
	@$(py) -m ruff format --quiet

bench: $(tests) ## measure the speed that the documentation claims
	@$(py) benchmarks/run.py $(ARGS)

bench-fetching: $(tests) ## compare downloads with curl, fsspec, pooch and cached-path (extra "bench")
	@$(py) -c 'import aiohttp, cached_path, fsspec, pooch' 2>/dev/null || \
	  $(pip) --editable '.[bench]'
	@$(py) benchmarks/fetching.py $(ARGS)

build: $(package) ## build the source distribution and the wheel in dist/
	@$(py) -c 'import build' 2>/dev/null || $(pip) build
	@$(py) -m build --outdir dist .

clean: ## remove everything that make has created
	@rm -rf .venv .venvs build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find sccache_dtool tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
