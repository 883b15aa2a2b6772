# make quickstart     set up, then search Lipsum-FT's hyperparameters on the embedded benchmark
# make test           tests that need Python and a package index only; 6 minutes on 2 cores
# make test-ray       searches on a real Ray of this machine
# make test-cluster   killed nodes, processes and jobs, full disks; needs root
# make nightly        all other tests, test-random, test-lowest, dist and what needs PostgreSQL, Slurm, Chromium or C++
# make test-random    fast tests in random order
# make test-lowest    fast tests with the lowest versions that pyproject.toml allows
# make docs           the documentation as a site in site/, without warnings
# make dist           wheel and source archive in dist/, and a try of the wheel on its own
# make lint           ruff and mypy

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Files stay on one process, which shares their fixtures; tests/conftest.py puts slow files first.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-ray test-cluster test-nightly test-random nightly test-lowest docs dist lint clean

quickstart: $(VENV)/.benchmark
	$(BIN)/lipsum-tune search quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m "not ray and not cluster and not nightly"

test-ray: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m "ray and not cluster and not nightly"

test-cluster: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m "cluster and not nightly"

# OPTIONS="--tenth 3" runs a tenth of them.
test-nightly: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m nightly $(OPTIONS)

test-random: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 -p randomly -m "not ray and not cluster and not nightly"

nightly: test-nightly test-random dist
	$(MAKE) test-lowest KEEP="torch torchvision"

# uv resolves the lowest versions, which pip cannot. With KEEP="torch torchvision", these two have the
# versions of $(VENV): on Linux, PyPI's wheels of PyTorch come with 8 GB of CUDA.
LOWEST := .venv-lowest
LINKS := $(addprefix --find-links=,$(PIP_FIND_LINKS))
test-lowest: $(if $(KEEP),$(VENV)/.dev)
	test -x $(LOWEST)/bin/uv || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	for name in $(KEEP); do $(BIN)/python -m pip list --format=freeze | grep "^$$name=="; done \
		> $(LOWEST)/kept.txt
	$(LOWEST)/bin/uv pip compile --quiet --upgrade --resolution lowest-direct --extra test pyproject.toml \
		--override $(LOWEST)/kept.txt $(LINKS) \
		--python $(LOWEST)/bin/python --output-file $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip install --quiet $(LINKS) --python $(LOWEST)/bin/python \
		--requirements $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	$(LOWEST)/bin/python -m pytest $(PARALLEL) -m "not ray and not cluster and not nightly"

docs: $(VENV)/.docs
	$(BIN)/python -m docs.build
	$(BIN)/python -m typer cluster.cli utils docs --name lipsum-tune --title Commands \
		--output docs/reference/commands.md
	$(BIN)/python -m zensical build --clean --strict

# The wheel is built from the source archive, so both are complete if it works.
WHEEL := .venv-wheel
dist:
	rm -rf dist $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet build
	$(WHEEL)/bin/python -m build --outdir dist
	$(WHEEL)/bin/python -m pip install --quiet dist/*.whl
	cd dist && ../$(WHEEL)/bin/lipsum-tune --version && ../$(WHEEL)/bin/lipsum-tune config --list
	cd dist && ../$(WHEEL)/bin/lipsum-tune config domainnet_vit_b16 > /dev/null
	rm -rf $(WHEEL)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(LOWEST) $(WHEEL) .cache build dist site *.egg-info

# Each stamp file stands for one extra, which is installed again when pyproject.toml changes.
$(VENV)/.%: pyproject.toml
	@echo "Installing into $(VENV): about a minute"
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
