# `make demo` and `make test` need nothing but git, make, python3 (3.11 or newer) and python3-venv.

PYTHON ?= python3
BIN := .venv/bin
UV := .tools/bin/uv
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test lint format lock clean

demo: .venv/runtime  ## the platform with the samples on it; ONCE=1 ends by itself
	@$(BIN)/python -m cli.demo $(if $(ONCE),--once)

test: .venv/develop  ## all tests; what this machine can't run is listed at the end
	$(BIN)/pytest --numprocesses=auto --maxprocesses=2 --dist=loadfile  # more would miss deadlines

lint: .venv/develop  ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The locked dependencies, then the project itself, built by what the lock holds
.venv/runtime: requirements.lock pyproject.toml | .venv/bin/pip
	$(INSTALL) --require-hashes --no-deps -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv/develop: requirements-dev.lock .venv/runtime
	$(INSTALL) --require-hashes --no-deps -r requirements-dev.lock
	@touch $@

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Pilotlight needs Python 3.11 or newer, and '$(PYTHON)' is not: name one with make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  rm -rf .venv; \
	  echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  exit 1; }

# After a change of the dependencies in pyproject.toml
lock: $(UV)
	$(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header \
	  --group pyproject.toml:build pyproject.toml -o requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header \
	  --group pyproject.toml:dev -c requirements.lock -o requirements-dev.lock

$(UV):
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet uv==0.13.9

clean:
	rm -rf .venv .tools .data .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
