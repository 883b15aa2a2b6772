# make quickstart     set up, then search Lipsum-FT's hyperparameters on the built-in benchmark
# make test           tests that need Python and a package index only; 5 minutes on 2 cores
# make test-ray       searches on a real Ray of this machine
# make test-gpu       what only a GPU can show
# make test-cluster   killed nodes, processes and jobs, full disks; needs root
# make nightly        all other tests, test-random, test-lowest, test-newest, dist and what needs PostgreSQL, Slurm, Chromium or C++
# make test-random    fast tests in random order
# make test-lowest    fast tests with the lowest versions that pyproject.toml allows
# make test-newest    fast and ray tests with the newest versions that it allows
# make docs           the documentation as a site in site/, without warnings
# make dist           wheel and source archive in dist/, and a try of the wheel on its own
# make lint           ruff and mypy
# make lock           newest versions of all packages but PyTorch into constraints.txt

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Files stay on one process, which shares their fixtures, in the order of tests/conftest.py.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# uv is faster than pip, but reads none of its settings. This prints those of the pip in
# the folder $(1) as lines of a requirements file; the environment comes first.
pip-settings = $(1)/python -m pip config list | sed -nE "s/\\\\n/ /g; \
	s/^[^.]+\.(constraint|extra-index-url|find-links|index-url|trusted-host)='(.*)'$$/\1 \2/p" | \
	awk '$$1 != "index-url" || !seen++ { for (i = 2; i <= NF; i++) print "--" $$1 " " $$i }'
# As pip, take the highest version of all indexes, also of PyPI and one that has PyTorch's wheels.
export UV_INDEX_STRATEGY ?= unsafe-best-match

.PHONY: quickstart test test-ray test-gpu test-cluster test-nightly test-random nightly test-lowest test-newest docs dist lint lock clean

quickstart: $(VENV)/.plain
	$(BIN)/lipsum-tune search quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m "not ray and not cluster and not nightly and not gpu"

test-ray: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m "ray and not cluster and not nightly and not gpu"

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest tests/gpu

test-cluster: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m "cluster and not nightly"

# OPTIONS="--tenth 3" runs a tenth of them.
test-nightly: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m nightly $(OPTIONS)

test-random: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 -p randomly -m "not ray and not cluster and not nightly"

nightly: test-nightly test-random dist
	$(MAKE) test-lowest KEEP="torch torchvision"
	$(MAKE) test-newest KEEP="torch torchvision"

# Other versions than those of constraints.txt. With KEEP="torch torchvision", these two have the
# versions of $(VENV): on Linux, PyPI's wheels of PyTorch come with 8 GB of CUDA.
test-lowest: RESOLUTION := lowest-direct
test-lowest: TESTS := not ray and not cluster and not nightly
test-newest: RESOLUTION := highest
test-newest: TESTS := not cluster and not nightly and not gpu
test-lowest test-newest: test-%: $(if $(KEEP),$(VENV)/.dev)
	test -x .venv-$*/bin/uv || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet uv
	for name in $(KEEP); do $(BIN)/python -m pip list --format=freeze | grep "^$$name=="; done \
		> .venv-$*/kept.txt
	$(call pip-settings,.venv-$*/bin) | .venv-$*/bin/uv pip compile --quiet --upgrade \
		--resolution $(RESOLUTION) --extra test pyproject.toml - --override .venv-$*/kept.txt \
		--python .venv-$*/bin/python --output-file .venv-$*/requirements.txt
	$(call pip-settings,.venv-$*/bin) | .venv-$*/bin/uv pip install --quiet --requirements - \
		--python .venv-$*/bin/python --requirements .venv-$*/requirements.txt
	.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python --no-deps --editable .
	.venv-$*/bin/python -m pytest $(PARALLEL) -m "$(TESTS)"

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
	$(WHEEL)/bin/python -m pip install --quiet build uv
	$(WHEEL)/bin/python -m build --outdir dist
	$(call pip-settings,$(WHEEL)/bin) | $(WHEEL)/bin/uv pip install --quiet --requirements - \
		--python $(WHEEL)/bin/python dist/*.whl
	cd dist && ../$(WHEEL)/bin/lipsum-tune --version && ../$(WHEEL)/bin/lipsum-tune config
	cd dist && ../$(WHEEL)/bin/lipsum-tune config domainnet_vit_b16 > /dev/null
	rm -rf $(WHEEL)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest $(WHEEL) .cache build dist site *.egg-info

# PyTorch is left to the settings of pip or uv, and so is what its wheels for CUDA bring along.
lock: $(BIN)/uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-config --all-extras \
		--default-index https://pypi.org/simple --no-annotate --no-header pyproject.toml > $(VENV)/all.txt
	grep -Ev '^(torch|torchvision|triton|cuda-.*|nvidia-.*)==' $(VENV)/all.txt > constraints.txt

$(BIN)/uv:
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet uv

# Each stamp file stands for one extra (`plain`: none), installed again when a version changes.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/uv
	@echo "Installing into $(VENV): about a minute"
	$(call pip-settings,$(BIN)) | $(BIN)/uv pip install --quiet --compile-bytecode --requirements - \
		--python $(BIN)/python --constraint constraints.txt --editable '.$(if $(filter-out plain,$*),[$*])'
	touch $@
