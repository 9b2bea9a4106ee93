# Everything runs in a virtual environment of its own; nothing else of the machine is touched.
#   make demo         train with and without PRISM on letters with half the labels wrong; no data needed
#   make test         lint, types and the whole test suite
#   make test-lowest  the test suite with the oldest dependencies that pyproject.toml admits
PYTHON ?= python3
VENV ?= .venv
VENV_LOWEST ?= .venv-lowest
BIN := $(VENV)/bin
# One thread a worker: two workers with a thread pool each would fight over the same cores.
PYTEST := -m pytest -n 2 --dist worksteal

.PHONY: demo test lint format test-lowest clean

demo: $(VENV)/.installed
	$(BIN)/prism demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-lowest: $(VENV_LOWEST)/.installed
	OMP_NUM_THREADS=1 $(VENV_LOWEST)/bin/python $(PYTEST)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Prism needs Python >= 3.10: make PYTHON=python3.11 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV_LOWEST)/.installed: pyproject.toml requirements/lowest.txt
	$(PYTHON) -m venv $(VENV_LOWEST)
	$(VENV_LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(VENV_LOWEST)/bin/python -m pip install --quiet --requirement requirements/lowest.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV_LOWEST) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
