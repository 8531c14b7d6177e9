# make quickstart   train, test and look at pictures on a small generated data set
# make test         every check and every test
# make check        every check and the quick tests
# make bench        time this machine; writes benchmarks/DATE-MACHINE-*.json
# make fuzz         10000 hostile files for every reader of foreign bytes, and the table of docs/security.md (half an hour)
# make gpu          on a machine with CUDA: its tests, and times of its kernels and networks into benchmarks/ (8 minutes)
# Each sets up .venv first, from Python 3.11+ and a C++ compiler; PYTHON=... chooses another Python.

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
MACHINE ?= local
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := .venv/bin/python -m pytest -q
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
GPU_BENCH := .venv/bin/rcnn bench --device cuda
SETUP := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/rcnn/ops/kernels/native/*.cpp src/rcnn/ops/kernels/native/*.h)

.PHONY: quickstart test check static fuzz bench gpu clean

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

fuzz: .venv/installed-dev
	.venv/bin/python -m tests.fuzz --cases 10000 --keep build/fuzz

bench: .venv/installed
	mkdir -p benchmarks
	for what in ops data eval infer train; do \
		.venv/bin/rcnn bench $$what --json benchmarks/$$(date +%F)-$(MACHINE)-$$what.json || exit; \
	done

gpu: .venv/installed-dev
	@.venv/bin/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('make gpu: PyTorch sees no CUDA GPU here')"
	$(PYTEST) -m gpu
	mkdir -p benchmarks
	for precision in fp32 bf16; do $(GPU_BENCH) ops --precision $$precision \
		--json benchmarks/$$(date +%F)-$(MACHINE)-gpu-ops-$$precision.json || exit; done
	for recipe in vgg16_voc07 r50_voc07 r101_voc07; do for what in infer train; do for run in fp32:1 bf16:1 bf16:8; do \
		$(GPU_BENCH) $$what --recipe $$recipe --precision $${run%:*} --batch $${run#*:} \
			--json benchmarks/$$(date +%F)-$(MACHINE)-gpu-$$recipe-$$what-$${run%:*}-$${run#*:}.json || exit; \
	done; done; done

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
