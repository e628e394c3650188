# `make demo` and `make test` install what they need on a machine with Python 3.11 or newer and nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PT_PEFT_SHARED ?= ../shared
export PT_PEFT_SHARED

.PHONY: install demo federation hosts soak lint format test test-slow fuzz docs docs-serve clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: install
	$(BIN)/nvflare simulator jobs/lora_vpt

# A server and three hospitals as processes of their own, with mTLS.
federation: install
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m benchmark federation

# The same on hosts of their own (Linux namespaces), once for each fault.
hosts: install
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m benchmark hosts

# Ten sites, five hundred rounds, random faults; then the picture of it.
soak: install
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m benchmark soak
	$(BIN)/python docs/_build/soak_figure.py

# Style, types and directions of import.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# Mends what a machine can mend.
format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A file at a time on each of two processes: most of a simulation is waiting.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: install
	$(BIN)/python -m pytest -m slow

# Ten thousand damaged variants for each loader.
fuzz: install
	PT_PEFT_FUZZ_CASES=10000 $(BIN)/python -m pytest -n 2 --timeout 3600 tests/fuzz

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

clean:
	rm -rf $(VENV) simulator_workspace federation build *.egg-info
