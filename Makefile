# make quickstart   train, test and look at pictures on a small generated data set
# make test         every check and every test
# make check        every check and the quick tests
# make bench        time this machine; writes benchmarks/DATE-MACHINE-*.json
# make gpu          the tests that need CUDA
# Each sets up .venv first, from Python 3.11+ and a C++ compiler; PYTHON=... chooses another Python.

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
MACHINE ?= local
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := .venv/bin/python -m pytest -q
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
SETUP := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/rcnn/ops/kernels/native/*.cpp src/rcnn/ops/kernels/native/*.h)

.PHONY: quickstart test check static bench gpu clean

quickstart: .venv/installed
	.venv/bin/rcnn quickstart

test: static
	$(PYTEST) $(PARALLEL)

check: static
	$(PYTEST) $(PARALLEL) -m "not slow"

static: .venv/installed-dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright
	.venv/bin/lint-imports

bench: .venv/installed
	mkdir -p benchmarks
	for what in ops data infer train; do \
		.venv/bin/rcnn bench $$what --json benchmarks/$$(date +%F)-$(MACHINE)-$$what.json || exit; \
	done

gpu: .venv/installed-dev
	$(PYTEST) -m gpu

clean:
	rm -rf .venv build

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer is on the path; say where: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: $(SETUP) | .venv/bin/python
	@echo "Installing rcnn into .venv (minutes at the first time)"
	$(PIP) -e .
	@touch $@

.venv/installed-dev: $(SETUP) | .venv/bin/python
	@echo "Installing rcnn and its development tools into .venv (minutes at the first time)"
	$(PIP) -e '.[dev]'
	@touch .venv/installed $@
