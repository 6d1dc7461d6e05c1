# Every target does its own set-up: a virtual environment in .venv with the pinned dependencies.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-all mutants fuzz hostile lint types schemas docs demo-teacher demo-teachers bench gpu

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 15

demo: $(STAMP) ## compress the embedded teacher to 5 % and draw the report (three to ten minutes on two cores)
	$(BIN)/diffcompress shrink demo --ratio 0.05 --output build/demo-run
	@echo
	@echo "Open the report:  $(CURDIR)/build/demo-run/report.html"
	@echo "The student:      $(CURDIR)/build/demo-run/pipeline"

test: $(STAMP) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

test-all: $(STAMP) ## run the tests with the slow ones: every family end to end
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q -m "slow or not slow"

mutants: $(STAMP) ## apply one-line mistakes to a copy of the package; the tests must notice each (ten minutes on one core)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

fuzz: $(STAMP) ## 3,000 odd inputs of every kind, seeded (some ten minutes on two cores)
	$(BIN)/python -m tests.fuzz.run --inputs 3000 --workers 2

hostile: $(STAMP) ## runs under kills, full disks, damage and little memory (the table of docs/reliability.md)
	$(BIN)/python benchmarks/hostile.py

lint: $(STAMP) types ## ruff, formatting, types and import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(STAMP) ## mypy
	$(BIN)/mypy

schemas: $(STAMP) ## write docs/schemas again, from the records; a test compares
	$(BIN)/python -m diffcompress.records.schemas docs/schemas

docs: $(STAMP) ## the documentation as a site, in build/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "Open $(CURDIR)/build/site/index.html"

demo-teacher: $(STAMP) ## train the embedded teacher again; resumable, hours on a CPU
	@test -d /usr/share/datasets/fashion-mnist || { echo "Fashion-MNIST is missing: apt install dataset-fashion-mnist (Debian)"; exit 1; }
	$(BIN)/torchrun --nproc_per_node 2 benchmarks/train_demo.py

demo-teachers: $(STAMP) ## train demo:dit and demo:mmdit again; resumable, an hour each on a CPU
	@test -d /usr/share/datasets/fashion-mnist || { echo "Fashion-MNIST is missing: apt install dataset-fashion-mnist (Debian)"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/train_demo_latent.py --teacher dit
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/train_demo_latent.py --teacher mmdit

bench: $(STAMP) ## compare the methods over seeds; resumable, one JSON line for each finished run
	$(BIN)/python benchmarks/compare.py

gpu: $(STAMP) ## what it makes of one GPU: speed, memory, resuming, in ten minutes (build/gpu.json)
	$(BIN)/python benchmarks/gpu.py

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "python3 -m venv is missing: apt install python3-venv (Debian, Ubuntu)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
