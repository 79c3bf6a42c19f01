# Two commands for a fresh machine: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2  # test processes; each may start up to four ranks of its own
STAMP := $(VENV)/.installed

.PHONY: demo test soak lint clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, found $$($(PYTHON) --version); set PYTHON=/path/to/python3.11" >&2; exit 2; }
	command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "error: a C++ compiler is needed to build kenlm; install one, for example: apt-get install g++" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python scripts/compile_kernels.py
	touch $@

demo: $(STAMP)
	$(BIN)/python scripts/demo/run.py

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not soak' -n $(strip $(JOBS)) --dist loadfile

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info demo_out demo_crawl demo_train
