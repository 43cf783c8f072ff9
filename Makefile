# `make demo` and `make test` are the two commands of the README, `make check` is for those who work on qplan;
# each sets up .venv on first use: the demo what it runs on, the others what developers need besides.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: demo check test tests lab notebooks docs lint clean
demo: .venv/runtime
	$(BIN)/qplan demo

# a file's tests share models that they build once: a worker takes whole files and below 1 GB; in their order, since those
# on the engine come first and must not be left to one worker in the end
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# what takes neither an engine nor a browser nor long; tests/conftest.py sets the marks
check: .venv/harness lint
	$(PYTEST) -m "not engine and not browser and not slow"

# the linters beside the tests: type checks take a minute on one processor
test: .venv/harness
	$(MAKE) --jobs=2 --no-print-directory tests lint

tests: .venv/harness
	$(PYTEST)

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo build/docs/index.html

# JupyterLab on the notebooks, which read the run that `make demo` leaves
lab: .venv/installed
	$(BIN)/jupyter lab notebooks

# the same without a browser: execute them all, write the copies in docs/notebooks/
notebooks: .venv/installed
	$(BIN)/python notebooks/render.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/runtime: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "qplan needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/installed: .venv/runtime
	$(INSTALL) --editable '.[dev]'
	touch $@

# lm-evaluation-harness and what it brings along, which the demo does without
.venv/harness: .venv/installed
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev,eval]'
	touch $@

clean:
	rm -rf .venv qplan-runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
