# make quickstart   set up, then search Lipsum-FT's hyperparameters on the embedded benchmark
# make test         set up, then run all tests
# make lint         ruff and mypy

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint clean

quickstart: $(VENV)/.benchmark
	$(BIN)/lipsum-tune search quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info

# A stamp for each set of extras: it is installed once, and again when pyproject.toml changes.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
