# make demo, make test: both make their own .venv when there is none.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/distilllens demo --output demo

test: .venv/installed lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Needs a quiet machine; BENCH="loss chunks" measures parts, `python -m benchmarks.run --list` says how long.
bench: .venv/installed
	$(BIN)/python -m benchmarks.run $(BENCH)
	$(BIN)/python -m benchmarks.tables

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf .venv demo build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
