# make quickstart     set up, then search Lipsum-FT's hyperparameters on the embedded benchmark
# make test           tests that need Python and a package index only; about 10 minutes on 2 cores
# make test-cluster   tests that need root, PostgreSQL or Slurm, or that take minutes each
# make lint           ruff and mypy

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-cluster lint clean

quickstart: $(VENV)/.benchmark
	$(BIN)/lipsum-tune search quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not cluster"

test-cluster: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m cluster

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info

# Each stamp file stands for one extra, which is installed again when pyproject.toml changes.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
