# `make quickstart` and `make test` each set up all that they need: python3.11, pip, make and gcc are enough.
PYTHON ?= python3.11
VENV := .venv
SMOKE ?= build/paper-smoke
BIN := $(VENV)/bin
# --no-deps: the files pin the whole set. Resolving would pull builds of torchvision that break transformers beside a CPU torch.
INSTALL := $(BIN)/pip install --quiet --no-deps --disable-pip-version-check

.PHONY: quickstart test paper-smoke lint clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	$(BIN)/kvray run sweeps/quickstart.yaml

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest

# Every sweep of the paper and of the open questions, at the size of the tiny model: no result, but every path.
paper-smoke: $(VENV)/.installed-dev
	$(BIN)/kvray run sweeps/paper/*.yaml sweeps/open/*.yaml --scale small --store $(SMOKE)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: requirements/cpu.txt pyproject.toml
	@echo "Setting up $(VENV): about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements/cpu.txt
	$(INSTALL) --no-build-isolation -e .
	touch $@

$(VENV)/.installed-dev: requirements/benchmarks.txt requirements/dev.txt $(VENV)/.installed
	$(INSTALL) -r requirements/benchmarks.txt -r requirements/dev.txt
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
