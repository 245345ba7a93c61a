# `make demo` shows pictures, `make quick` checks in minutes what needs no PyTorch, Ray or Gradio, `make test`
# everything but the web page, which `make test-web` does in Chromium.
# All set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
# Python compiles what is imported when it is imported, a tenth of what is installed
INSTALL := $(BIN)/pip install --quiet --no-compile
# what is imported is compiled once for all the processes that tests start, which is a third of some tests
export PYTHONDONTWRITEBYTECODE :=
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# the files of tests go to two processes; see tests/conftest.py for their order
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --ignore tests/web

.PHONY: demo quick quick-types quick-suite test types suite test-web lint check format docs wheel clean

demo: .venv/installed
	$(BIN)/jaxl generate "a red apple on a blue background, flat style" -n 4 --seed 7 --steps 25 --output demo

# types beside the tests, as each of the three takes one core
quick: .venv/light lint
	$(MAKE) --no-print-directory --jobs 2 quick-types quick-suite

quick-types: .venv/light
	$(BIN)/pyright --project tools/quick.json

quick-suite: .venv/light
	$(PYTEST) --quick -p no:schemathesis

test: .venv/tested lint
	$(MAKE) --no-print-directory --jobs 2 types suite

types: .venv/tested
	$(BIN)/pyright

suite: .venv/tested
	$(PYTEST)

# Gradio leaves event loops of its own behind; schemathesis imports modules at the end, which Python 3.11 cannot parse
# when Playwright's greenlets have moved its recursion depth
test-web: .venv/web chromium
	$(BIN)/pytest tests/web $(WEB) -p no:schemathesis -W ignore::pytest.PytestUnraisableExceptionWarning

lint: .venv/light
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: lint types

format: .venv/tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the site of the pages, in site/
docs: .venv/docs
	$(BIN)/mkdocs build

# jaxl as it is handed out, in dist/, and tried in an environment with nothing else in it
wheel: .venv/bin/python
	rm -rf dist
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python tools/try_wheel.py dist/jaxl-*.whl

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jaxl needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(INSTALL) --upgrade "pip>=25.1"

.venv/installed: pyproject.toml | .venv/bin/python
	$(INSTALL) --editable .
	touch $@

.venv/light: pyproject.toml .venv/installed
	$(INSTALL) --group dev
	touch $@

.venv/tested: pyproject.toml .venv/light
	$(INSTALL) --group test
	touch $@

.venv/docs: pyproject.toml | .venv/bin/python
	$(INSTALL) --group docs
	touch $@

.venv/web: pyproject.toml .venv/tested
	$(INSTALL) --group web
	touch $@

# Debian's package; elsewhere, install Chromium by your system's means
.PHONY: chromium
chromium:
	command -v chromium > /dev/null || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y --no-install-recommends chromium; }

clean:
	rm -rf .venv demo site dist
