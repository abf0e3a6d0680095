# make demo and make test are all a newcomer types: each sets up what is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch comes first and pinned, by pip: pip then takes the CPU wheel where one lies at hand, and nothing later moves it
TORCH := torch==2.13.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test lint format docs doctest examples wheel clean

$(VENV)/.runtime: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade 'pip>=25.1'
	$(PIP) $(TORCH)
	$(PIP) --editable .
	touch $@

$(VENV)/.development: $(VENV)/.runtime
	$(PIP) --group dev --group docs
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/troth demo

test: $(VENV)/.development
	$(PYTEST) -n 2 --dist worksteal tests

lint: $(VENV)/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src

format: $(VENV)/.development
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

doctest: $(VENV)/.development
	$(PYTEST) --doctest-modules -p no:randomly -q src/troth

examples: $(VENV)/.development
	$(PYTEST) -p no:randomly -q tests/test_examples.py

docs: $(VENV)/.development
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q -b html docs docs/_build/html

# the wheel in an environment of its own, with what it declares and nothing else
wheel: $(VENV)/.development
	rm -rf dist build/clean
	$(BIN)/python -m build --wheel --no-isolation .
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	build/clean/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd build && clean/bin/python -c "import importlib, pkgutil, troth; [importlib.import_module(m.name) for m in pkgutil.walk_packages(troth.__path__, 'troth.')]; print('wheel imports:', troth.__version__)"
	cd build && clean/bin/troth --help > /dev/null

clean:
	rm -rf build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis
