# Users need two targets: quickstart and test. Each makes the virtual environment where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
FAMILY ?= gpt
OUT ?= quickstart/$(FAMILY)
export OMP_NUM_THREADS ?= 2

.PHONY: setup quickstart test check

quickstart: setup
	BIN=$(BIN) OUT=$(OUT) FAMILY=$(FAMILY) bash scripts/quickstart.sh

test: setup check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=10

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: $(VENV)/installed

# torch first: DeepSpeed's source package looks for it while it is built
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
