# make demo    grow a small BERT on this machine and show what it learnt
# make test    the whole test suite, with lints and types
# Both make .venv and install what they need first, once.

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# The first of these that is there, works and is new enough; PYTHON=... chooses another.
FIND_PYTHON = for name in python3.11 python3.12 python3.13 python3 python; do \
	if $$name -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$name; exit; fi; done

.PHONY: demo test lint format clean
.DELETE_ON_ERROR:

demo: .venv/.installed
	$(BIN)/bertkin demo

test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/pytest -q -n auto --dist loadfile

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed-dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@python="$${PYTHON:-$$($(FIND_PYTHON))}"; \
	if [ -z "$$python" ]; then echo "bertkin needs Python 3.11 or newer with its venv module; none was found" >&2; exit 1; fi; \
	echo "making .venv with $$python"; "$$python" -m venv .venv

# torch first: it is the large one, and the rest must not choose another.
.venv/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing bertkin and what it needs into .venv (a few minutes the first time)"
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "installing what the tests need into .venv"
	@$(PIP) --editable '.[dev]'
	@touch $@
