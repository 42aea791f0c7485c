# Two commands do all the set-up: `make demo` and `make test`. Both make and reuse one virtual environment in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
COMPILED := $(VENV)/.compiled
# Tests that run at once; each worker has a throw-away Slurm cluster of its own.
JOBS   ?= 2

# The other Slurm: each commit has its own, and both come round. RELEASE names one.
RELEASE ?=
OTHER  := $(or $(RELEASE),$(shell case "$$(git rev-parse HEAD 2>/dev/null)" in (*[02468ace]) echo sid;; (*) echo trixie;; esac))

.PHONY: help demo test tools lint fast slow live other bench docs dist clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version); say make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "installing python3-venv"; apt-get update -qq && apt-get install -y -qq python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[server,train,evaluate,traces,docs,dev]'
	@touch $@

demo: $(STAMP)  ## the same jobs on stock Slurm and with TapFinger, on a real throw-away cluster
	$(BIN)/tapfinger demo --install

test: tools lint fast slow live other  ## everything that CI runs

# The hook's wake-ups are tested with a Lua outside of slurmctld too, and debootstrap fetches the other Slurm; without
# them those tests are skipped.
TOOLS := lua5.1 lua-socket debootstrap
tools:
	@dpkg -s $(TOOLS) >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq $(TOOLS); } || true

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# numba does not notice that a function called from another file has changed, so after any change all is compiled anew.
$(COMPILED): $(STAMP) $(shell find tapfinger_hpc -name '*.py')
	@find tapfinger_hpc -name '*.nb[ic]' -delete
	$(BIN)/python -m tapfinger_hpc.sim.warm
	@touch $@

fast: $(COMPILED)  ## tests without Slurm, under a minute
	$(BIN)/pytest -q -n $(JOBS) -m 'not slurm and not slow'

slow: $(COMPILED)  ## training runs and the like
	$(BIN)/pytest -q -n $(JOBS) -m 'slow and not slurm'

# Killed daemons and a shared machine now and then miss a moment: a failed test is run once more, and shown as rerun.
live: $(COMPILED)  ## tests on a real slurmctld (skipped where none can be had); RELEASE=trixie or sid: on that Debian's
	@$(BIN)/tapfinger sandbox install $(if $(RELEASE),--release $(RELEASE)) || \
	    echo "this Slurm cannot be had here: the tests that need it are skipped"
	$(BIN)/pytest -q -n $(JOBS) --dist loadfile --reruns 1 -rfEsR -m slurm --slurm-release '$(RELEASE)'

other: $(COMPILED)  ## the core of the live tests on the Slurm of another Debian, trixie or sid in turn
	@$(BIN)/tapfinger sandbox install --release $(OTHER) || \
	    echo "Debian $(OTHER) cannot be had here: the tests that need its Slurm are skipped"
	$(BIN)/pytest -q -n $(JOBS) --dist loadfile --reruns 1 -rfEsR -m 'slurm and core' --slurm-release $(OTHER)

bench: $(COMPILED)  ## the figures of docs/benchmarks.md, some ten minutes
	$(BIN)/tapfinger bench live --json bench.json

# The program writes the reference pages itself; a warning, such as of a link that leads nowhere, is an error.
docs: $(STAMP)  ## these pages as HTML, in build/docs
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs

# For other versions of Python than the one at hand: make dist PYTHONS="3.11 3.13".
dist: $(STAMP)  ## wheel, offline bundle and .deb, in dist/
	$(BIN)/python -m release.build $(if $(PYTHONS),--python $(PYTHONS))

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
