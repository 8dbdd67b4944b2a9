# Needs CPython >= 3.11, git and make; everything else is installed into .venv. `make` alone says what there is.
#
# Settings:  PYTHON=/path/to/python3   what .venv is made from (the default: see .ci/pythons)
#            ARGS='-k gate -x'         further options for pytest, the demo or the benchmarks
#            MINUTES=60                how long `make torture` takes

VENV   ?= .venv
PYTHON ?=
ARGS   ?=
MINUTES ?= 10
export ARGS

# Modules are compiled once, and not at each of the thousands of starts of Python, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

# All paths are relative, so that the checkout may lie in a directory with spaces in its name.
py := $(VENV)/bin/python

# What is installed into .venv, each part only once a target needs it: the package alone; what tests need; linters.
package := $(VENV)/.installed
tests   := $(VENV)/.installed-test
linters := $(VENV)/.installed-lint
pip      = $(py) -m pip install --quiet --quiet --disable-pip-version-check

# Two more than there are processors: some tests wait for a clock, and none depends on how busy the machine is.
workers = $(shell echo $$(($$(nproc) + 2)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

.PHONY: FORCE help venv demo demo-dtool test test-hosts test-all test-nfs test-gluster model torture lint format bench bench-fetching build clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

venv: $(tests) $(linters) ## make .venv, with this package (editable), its tests' needs and its linters

# Out of date, too, where the Python that it was made from is gone. Removes only what is a virtual environment.
$(package): setup.cfg setup.py pyproject.toml $(shell test -x "$(py)" || echo FORCE)
	@set -e; [ -x "$(py)" ] && [ -e "$@" ] || { \
	  chosen=$$(sh .ci/pythons "$(PYTHON)"); \
	  printf '%s\n' "$$chosen" | { read -r version module path; \
	    echo "making $(VENV) with Python $$version ($$path)"; \
	    if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi; \
	    "$$path" -m "$$module" "$(VENV)" >/dev/null; }; }
	@echo "installing sccache-dtool into $(VENV)"
	@$(pip) --no-compile --editable . # which takes a third of the time; modules are compiled when they are needed
	@touch $@
FORCE:

$(tests) $(linters): $(VENV)/.installed-%: $(package)
	@echo "installing sccache-dtool[$*] into $(VENV)"
	@$(pip) --editable '.[$*]'
	@touch $@

demo: $(package) ## show what the program does, in a scratch directory
	@$(py) docs/demo.py $(ARGS)

demo-dtool: $(tests) ## show what it does for users of dtool
	@$(py) docs/demo_dtool.py $(ARGS)

# $SCRATCH: where the tests have their directories: in `memory`, if it has room, or on a `disk`.
test: $(tests) ## run the tests that need nothing but this machine, on all processors
	@SCRATCH=$${SCRATCH:-memory} $(py) -m pytest -q -m 'not lab' --numprocesses $(workers) --dist worksteal $(ARGS)

test-hosts: $(tests) ## run the tests on several kernels (NFS) and on a Slurm cluster (as root, on Debian)
	@$(py) -m pytest -q -m lab --numprocesses 3 --dist loadfile $(ARGS)

test-nfs: $(tests) ## run the long tests on real NFS: several kernels, all versions of the protocol (as root, on Debian)
	@bash .ci/packages nfs
	@PYTHONPATH=tests $(py) -m nfs $(ARGS)

test-all: ## run `make test` under every CPython >= 3.11 on this machine
	@sh .ci/test-all

test-gluster: $(tests) ## run the tests on GlusterFS: two clients of a replicated volume (as root, on Debian)
	@bash .ci/packages gluster
	@$(py) -m pytest -q tests/gluster $(ARGS)

model: $(tests) ## explore the protocol's model, refute wrong ones, and write the figures into the docs
	@PYTHONPATH=tests $(py) -m model

torture: $(tests) ## MINUTES=… of crashes, orders of steps, misfortunes and storm; the figures go into the docs
	@PYTHONPATH=tests $(py) -m races.torture $(MINUTES) $(ARGS)

lint: $(tests) $(linters) ## check style, types, and that imports run downward only
	@status=0; \
	$(py) -m ruff check --quiet --output-format concise || status=1; \
	$(py) -m ruff format --check --quiet --output-format concise || status=1; \
	$(py) -m mypy --no-error-summary || status=1; \
	found=$$($(VENV)/bin/lint-imports --no-logo) || { printf '%s\n' "$$found"; status=1; }; \
	[ $$status != 0 ] || echo "style, types and imports are in order"; \
	exit $$status

format: $(linters) ## put the code in form, and mend what ruff can mend safely
	@$(py) -m ruff check --quiet --fix-only
	@$(py) -m ruff format --quiet

bench: $(tests) ## measure what speed is claimed
	@$(py) benchmarks/run.py $(ARGS)

bench-fetching: $(tests) ## measure downloads beside curl, fsspec, pooch and cached-path (the extra "bench")
	@$(py) -c 'import aiohttp, cached_path, fsspec, pooch' 2>/dev/null || \
	  $(pip) --editable '.[bench]'
	@$(py) benchmarks/fetching.py $(ARGS)

build: $(package) ## make the source distribution and the wheel, in dist/
	@$(py) -c 'import build' 2>/dev/null || $(pip) build
	@$(py) -m build --outdir dist .

clean: ## remove everything that make has made
	@rm -rf .venv .venvs build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find sccache_dtool tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
