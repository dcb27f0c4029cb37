# Everything needs a C++ compiler and Python 3.11 or newer with venv; `make PYTHON=python3.12 ...` picks one.

PYTHON ?= python3
PROFILE ?= host
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test pytest lint types other-pythons bench bench-export clean

help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Install edgekit into .venv, with llama.cpp built for this machine
	@$(BIN)/edgekit runtime install --profile $(PROFILE)

demo: setup ## Export, sign, serve and watch a real student
	@$(BIN)/edgekit demo

test: lint types pytest other-pythons ## Run all checks

pytest: setup ## Run the tests
	$(BIN)/pytest

lint: $(INSTALLED) ## Check style, formatting and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(INSTALLED) ## Check types; edgekit's also for the oldest and the newest Python of a device
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 -p edgekit
	$(BIN)/mypy --python-version 3.13 -p edgekit

other-pythons: setup ## Run edgekit's tests on the other Pythons that devices have
	$(BIN)/python tests/other_pythons.py

bench: setup ## Compare with llama.cpp's own programs (builds them the first time)
	@built=$$($(BIN)/edgekit runtime build --profile $(PROFILE) --tools) && \
	    $(BIN)/python tests/bench_peers.py --tools "$$(printf '%s\n' "$$built" | tail -n 1)"

bench-export: setup ## Compare exports with llama.cpp's converter and onnxruntime-genai's builder (fetches torch)
	@built=$$($(BIN)/edgekit runtime build --profile $(PROFILE) --tools) && \
	    $(BIN)/python tests/bench_export.py --llama-quantize "$$(printf '%s\n' "$$built" | tail -n 1)/llama-quantize"
	@$(BIN)/python tests/bench_onnx.py
	@$(BIN)/python tests/bench_onnx.py --threads 2

clean: ## Remove what make made here; the user's cache stays
	rm -rf .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# llama-cpp-python is left to `edgekit runtime`: the extra `llama` would compile it with guessed flags.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: $(PYTHON) is missing or older than 3.11; try: make PYTHON=python3.12 setup" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	    echo "make: on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@echo "installing edgekit and what it needs into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable '.[dev,export,fleet]'
	@touch $@
