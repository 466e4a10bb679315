# Every target creates .venv on first use; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup quickstart nowllm-mini test check bench dist torture fuzz models remote cluster-test clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "glitchrun needs Python 3.11 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# The files of torch differ between platforms and indexes; everything else must have a hash of the lock.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(READY)

quickstart: $(READY)
	$(BIN)/glitchrun apply specs/smollm2-quickstart.yaml

nowllm-mini: $(READY)
	# A stand-in for nowllm-0829 whose glitch tokens are known: NOWLLM_PATH=.cache/nowllm-mini/nowllm-0829
	$(BIN)/python -m tools.standin mini .cache/nowllm-mini/nowllm-0829

test: $(READY)
	# Two processes with one thread each: more threads than cores make small models tens of times slower.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.docstrings
	$(BIN)/glitchrun schema --check
	$(BIN)/glitchrun validate specs
	$(BIN)/bandit -q -c pyproject.toml -r glitchrun
	$(BIN)/python -m tools.audit

bench: nowllm-mini
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

dist: $(READY)
	# The wheel, built twice: equal sources give equal bytes.
	rm -rf dist build/again
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --wheel --outdir dist .
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --wheel --outdir build/again .
	cmp dist/*.whl build/again/*.whl

torture: $(READY)
	# Kills, full disks, damaged files and other faults, injected into runs of a tiny model: docs/reliability.md.
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.torture $(ARGS)

fuzz: $(READY)
	# Malformed specs, result files and checkpoints. Takes about an hour; ARGS="--examples 200" takes minutes.
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.fuzz $(ARGS)

models: $(READY)
	# Builds and tests a small model of every family in transformers, for docs/models.md. Takes some minutes.
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.families

remote: $(READY)
	# Real MLflow servers that fail while runs are delivered to them. Takes some minutes.
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.remote

cluster-test: $(READY)
	# As root: a Ray cluster of three network namespaces, one of them cut off. Takes some minutes.
	$(BIN)/python -m tools.cluster

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache dist build
