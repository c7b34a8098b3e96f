# make demo   train configs/demo.yaml to its end, in a virtual environment of its own
# make test   the same set-up, then every test that CI runs
# make bench  every suite in bench/; table and plot go to bench/results
# A machine that has a torch already keeps it. TORCH=... chooses another, PYTHON=... another interpreter.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
FIND_TORCH := from importlib.util import find_spec; print(find_spec("torch").submodule_search_locations[0])
TORCH_DIR = $$($(BIN)/python -c '$(FIND_TORCH)')
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)

.PHONY: demo test test-all test-gpu bench lint format docs clean

demo: $(VENV)/.installed
	$(BIN)/python -m internevo_engine.run configs/demo.yaml

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow and not gpu" --durations=10

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not gpu" --durations=20

test-gpu: $(VENV)/.installed-dev
	@{ $(BIN)/python -m internevo_engine doctor; $(BIN)/python -m pytest -m gpu -v; } 2>&1 | tee gpu-report.txt
	@echo "the report is in gpu-report.txt; please send it to us as an issue"

# BENCH="-k 'not lab' --long" chooses suites and rows
bench: $(VENV)/.installed-dev
	@mkdir -p build
	@status=0; $(BIN)/python -m pytest bench --benchmark-json=build/bench.json $(BENCH) || status=$$?; \
	  $(BIN)/python -m bench.report build/bench.json && exit $$status

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	@command -v g++ >/dev/null || { echo "a C++ compiler is missing: apt-get install g++"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@if torch=$$($(PYTHON) -c '$(FIND_TORCH)' 2>/dev/null); then \
	  echo "== $(VENV) uses the torch that is already there: $$torch"; \
	  dirname "$$torch" > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch-outside.pth; \
	else \
	  echo "== installing $(TORCH) into $(VENV) (a minute or two)"; \
	  $(PIP) '$(TORCH)'; \
	fi

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	@echo "== installing internevo_engine and building its C++ extension (a minute or two)"
	@IE_TORCH_DIR=$(TORCH_DIR) $(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "== installing what the tests need"
	@IE_TORCH_DIR=$(TORCH_DIR) $(PIP) -e '.[dev]'
	@touch $@

docs: $(VENV)/.installed-dev
	@IE_TORCH_DIR=$(TORCH_DIR) $(PIP) -e '.[docs]'
	$(BIN)/sphinx-build -W -q docs build/docs

clean:
	rm -rf build $(VENV) internevo_engine/*.so
