# Each target does its own set-up: a fresh clone needs make, Python 3.11 or newer, and a package index for pip.
#
#   make demo PYTHON=python3.13     with another Python
#   make test ARGS="-k journal"     with options for pytest
#   make bench ARGS="P3 P7 --scale 0.2"

PYTHON   ?=
ARGS     ?=
WORKERS  ?= 2
VERSION  ?= all
FAST      = tests/house tests/unit tests/properties
VERSIONED = $(addprefix tests/conformance/test_, reader_postgresql.py relay_postgresql.py relay_sessions.py \
  relay_elsewhere.py plans.py journal.py log_builtin.py log_builtin_groups.py inbox_claims.py inbox_handling.py \
  retention_outbox.py retention_log.py retention_inbox.py)

BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: help demo test test-on bench check format reference services stop-services clean
.DELETE_ON_ERROR:

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: $(INSTALLED) ## watch the whole road for half a minute, with processes killed on the way
	@$(BIN)/python -m examples.demo

test: $(INSTALLED) ## every test, on the embedded PostgreSQL, SQLite, and the servers of `make services` that run
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

bench: $(INSTALLED) ## how fast it is, each figure beside its limit; minutes (docs/performance.md says what the parts are)
	@$(BIN)/python -m benchmarks $(ARGS)

test-on: $(INSTALLED) ## what reads, moves and handles on one version of PostgreSQL: VERSION=14, of those that `make services` runs
	OUTBOX_TEST_POSTGRESQL=$$(scripts/services url postgresql --version $(VERSION)) \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q $(VERSIONED) -k "not sqlite and not memory" $(ARGS)

check: $(INSTALLED) ## format, lint, import rules, types and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(FAST) $(ARGS)

format: $(INSTALLED) ## format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reference: $(INSTALLED) ## write docs/commands.md anew
	$(BIN)/python scripts/cli_reference.py > docs/commands.md

services: $(INSTALLED) ## start PostgreSQL 14 to 18 (VERSION=16 for one) and Kafka for the tests; scripts/services says more
	scripts/services start postgresql --version $(VERSION)
	scripts/services start kafka

stop-services: ## stop them
	scripts/services stop

clean: stop-services ## remove what was built, fetched and kept here
	rm -rf .venv .services build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@sh scripts/make-venv .venv $(PYTHON)
	@touch $@
