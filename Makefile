# `make setup` builds .venv. `make quickstart` and `make test` do so first: Linux, Python 3.11 to 3.13, pip, make and g++ are enough.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do $$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
SMOKE ?= build/paper-smoke
BIN := $(VENV)/bin
SYSTEM ?= $(shell uname -s)
# --no-deps: the files pin the whole set. Resolving would pull builds of torchvision that break transformers beside a CPU torch.
INSTALL := $(BIN)/pip install --quiet --no-deps --disable-pip-version-check
# The package index's torch for Linux is the CUDA build, which does not import without CUDA's libraries. Only the CPU build is
# called +cpu. It comes from wherever pip is configured to look, else from this index, which is asked for torch alone.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH = $(shell grep '^torch==' requirements/cpu.txt)
# ensurepip: Debian and Ubuntu have it in a package of its own, and without it no virtual environment can be made.
FITS := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.PHONY: setup quickstart test paper-smoke lint docs lock clean
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

quickstart: $(VENV)/.installed
	$(BIN)/kvray run sweeps/quickstart.yaml

# What starts Ray or vLLM has the machine to itself; the rest runs side by side.
test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -m "not slow" --numprocesses logical --maxprocesses 8 --dist loadfile
	$(BIN)/python -m pytest -m slow

# Every sweep of the paper and of the open questions, at the size of the tiny model: no result, but every path.
paper-smoke: $(VENV)/.installed-dev
	$(BIN)/kvray run sweeps/paper/*.yaml sweeps/open/*.yaml --scale small --allow-code --store $(SMOKE)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Strictly: a link that leads nowhere ends it. The variable silences Material's note on its own successor.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html can be opened as it is; with the search: $(BIN)/python -m http.server --directory build/site"

# Resolves for the platform of the GPU image, whatever this machine is. uv keeps what is pinned already, where it can.
lock: $(VENV)/.installed
	@$(BIN)/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	@sed '/^#/!d' requirements/gpu.txt >$(VENV)/gpu.head
	$(BIN)/uv pip compile pyproject.toml --extra gpu --extra benchmarks --python-version 3.11 \
	--python-platform x86_64-manylinux_2_34 --no-header --no-annotate --quiet --output-file requirements/gpu.txt
	@cat $(VENV)/gpu.head requirements/gpu.txt >$(VENV)/gpu.txt && mv $(VENV)/gpu.txt requirements/gpu.txt

$(VENV)/.installed: requirements/cpu.txt pyproject.toml
	@[ "$(SYSTEM)" = Linux ] || { echo "kvray is set up on Linux alone, where vLLM's CPU build has wheels; this is $(SYSTEM): use a Linux container or virtual machine, on Windows WSL." >&2; exit 1; }
	@$(or $(PYTHON),false) -c '$(FITS)' 2>/dev/null || { echo "$(or $(PYTHON),none found): expected Python 3.11 to 3.13 with venv; install one (Debian and Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@command -v "$${CXX:-g++}" >/dev/null || { echo "$${CXX:-g++}: not found, and vLLM on a CPU compiles parts of itself as it starts; install a C++ compiler (Debian and Ubuntu: apt install g++)" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): about two minutes"
	$(PYTHON) -m venv $(VENV)
	@$(INSTALL) '$(TORCH)' 2>$(VENV)/torch.log \
	|| { echo "pip as configured finds no $(TORCH): asking $(TORCH_INDEX)"; $(INSTALL) --index-url $(TORCH_INDEX) '$(TORCH)'; } \
	|| { cat $(VENV)/torch.log >&2; echo "$(TORCH): found neither where pip looks nor at $(TORCH_INDEX); set TORCH_INDEX to an index that has it, or PIP_FIND_LINKS to a folder with the wheel" >&2; exit 1; }
	$(INSTALL) -r requirements/cpu.txt
	$(INSTALL) --no-build-isolation -e .
	touch $@

$(VENV)/.installed-dev: requirements/benchmarks.txt requirements/dev.txt $(VENV)/.installed
	$(INSTALL) -r requirements/benchmarks.txt -r requirements/dev.txt
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
