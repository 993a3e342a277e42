# Everything a developer does here. `make help` lists the targets; each makes what it needs first.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Whatever the caller's environment says: where compiled files are not kept, every process compiles all that it imports,
# which takes as long again as its start, and the tests start some two hundred.
export PYTHONDONTWRITEBYTECODE :=
SOURCES := protos/generate.py service_runtime router_service usage_service clients/turnpike_client tests

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

# uv is bootstrapped by pip, pinned by hash like everything else; it then installs in seconds what takes pip half a minute.
$(BIN)/uv: requirements/bootstrap.txt
	@$(PYTHON) -c 'import sys; sys.exit("Turnpike needs Python 3.11 or newer; this is %s. Name another: make PYTHON=python3.12 ..." % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@touch $@

$(VENV)/.runtime: $(BIN)/uv requirements/runtime.txt pyproject.toml clients/pyproject.toml
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements/runtime.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e . -e clients
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

.PHONY: run
run: $(VENV)/.runtime ## start Postgres, usage_service and router_service; serve until Ctrl-C
	@exec $(BIN)/python -m service_runtime.launcher usage_service router_service

.PHONY: test
test: $(VENV)/.dev ## everything that CI runs
# Half of the time the first two wait for a database, a process or a clock. The third waits for nothing and has no clocks
# that it could miss: it gives way.
	@$(MAKE) --no-print-directory --jobs 3 --output-sync=target e2e integration meanwhile
# What has limits in seconds keeps the machine to itself.
	@$(MAKE) --no-print-directory coverage chaos-short bench-smoke

.PHONY: meanwhile
meanwhile: $(VENV)/.dev
	@nice -n 5 $(MAKE) --no-print-directory check unit

.PHONY: test-all
test-all: ## run the suite on each supported Python that is installed
	@set -e; for version in 3.11 3.12 3.13; do \
	  if command -v python$$version >/dev/null && python$$version -c '' 2>/dev/null; then \
	    echo "== Python $$version"; $(MAKE) --no-print-directory test VENV=.venv-$$version PYTHON=python$$version; \
	  else echo "== Python $$version is not installed: left out"; fi; \
	done

.PHONY: check
check: protos-check lint ## stubs fresh, style, types, import rules, contract tests
	@rm -f .coverage.contract*
	$(BIN)/coverage run --data-file=.coverage.contract -m pytest tests/contract

.PHONY: protos
protos: $(VENV)/.dev ## regenerate the stubs from protos/
	$(BIN)/python protos/generate.py

.PHONY: protos-check
protos-check: $(VENV)/.dev
	$(BIN)/python protos/generate.py --check
	$(BIN)/python protos/generate.py --describe $(VENV)/contract.binpb
	$(BIN)/buf lint $(VENV)/contract.binpb --config protos/buf.yaml
	$(BIN)/buf breaking $(VENV)/contract.binpb --against protos/baseline.binpb --config protos/buf.yaml

.PHONY: fmt
fmt: $(VENV)/.dev ## format the code
	$(BIN)/ruff check --fix --quiet $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/buf format -w protos

.PHONY: lint
lint: $(VENV)/.dev ## ruff, mypy --strict, import rules, compose file
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: unit
unit: $(VENV)/.dev ## pure tests: no network, no database
	@rm -f .coverage.unit*
	$(BIN)/coverage run --data-file=.coverage.unit -m pytest tests/unit

.PHONY: integration
integration: $(VENV)/.dev ## against a real Postgres and real sockets, in one process
	@rm -f .coverage.integration*
	$(BIN)/coverage run --data-file=.coverage.integration -m pytest tests/integration

.PHONY: e2e
e2e: $(VENV)/.dev ## real processes
	@rm -f .coverage.e2e*
	$(BIN)/coverage run --data-file=.coverage.e2e -m pytest tests/e2e

.PHONY: coverage
coverage: $(VENV)/.dev ## of all the runs before, together
	@$(BIN)/coverage combine --quiet --keep .coverage.*
	@$(BIN)/coverage report

SEED ?= 1
MINUTES ?= 5

.PHONY: chaos
chaos: $(VENV)/.dev ## faults on real processes, then the books: SEED=1 MINUTES=5 [SABOTAGE=skip_sync]
	$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES) $(if $(SABOTAGE),--sabotage $(SABOTAGE))

.PHONY: chaos-short
chaos-short: $(VENV)/.dev ## two minutes of it with a fixed seed, and one broken promise that it must notice
	$(BIN)/python -m tests.chaos --seed 113 --minutes 1.5
	$(BIN)/python -m tests.chaos.sabotage skip_sync

.PHONY: chaos-sabotage
chaos-sabotage: $(VENV)/.dev ## break each of four promises; succeeds when every run goes red
	$(BIN)/python -m tests.chaos.sabotage

$(VENV)/.real: $(VENV)/.dev requirements/real.txt
	$(PYTHON) -m venv $(VENV)/real
	$(BIN)/uv pip install --quiet --python $(VENV)/real --require-hashes -r requirements/real.txt
	@touch $@

.PHONY: test-real
test-real: $(VENV)/.real ## opt-in: stream from a real llama.cpp server; compiles for minutes
	LLAMA_PYTHON=$(VENV)/real/bin/python $(BIN)/python -m pytest tests/real -s

$(VENV)/.fuzz: $(BIN)/uv requirements/fuzz.txt
	$(PYTHON) -m venv $(VENV)/fuzz
	$(BIN)/uv pip install --quiet --python $(VENV)/fuzz --require-hashes -r requirements/fuzz.txt
	@touch $@

SECONDS_PER_TARGET ?= 60

.PHONY: fuzz
fuzz: $(VENV)/.fuzz ## opt-in: fuzz what reads a provider's bytes: SECONDS_PER_TARGET=60
	$(VENV)/fuzz/bin/python -m tests.fuzz --seconds $(SECONDS_PER_TARGET)

.PHONY: bench
bench: $(VENV)/.dev ## measure router and ledger, and print the figures; a quarter of an hour
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.ledger --events 200000 --rows 10000,1000000

.PHONY: bench-journal
bench-journal: $(VENV)/.dev ## what the journal costs, how a backlog of a million drains, memory in an outage; ten minutes and more
	$(BIN)/python -m tests.bench.journal --backlog 1000000 --outage-s 600

.PHONY: bench-outage
bench-outage: $(VENV)/.dev ## ten minutes under load without usage_service: the router's memory, the drain, the books
	$(BIN)/python -m tests.bench.outage --seconds 600

.PHONY: bench-drain
bench-drain: $(VENV)/.dev ## what calls feel of a backlog of 300,000 that drains beside them, services and all; six minutes
	$(BIN)/python -m tests.bench.drain --backlog 300000 --rounds 8

.PHONY: bench-smoke
bench-smoke: $(VENV)/.dev ## a short run of the bench that fails when it gives no table
	$(BIN)/python -m tests.bench --output $(VENV)/bench-smoke.json --smoke

BEFORE ?= bench-before.json
AFTER ?= bench-results.json

.PHONY: bench-compare
bench-compare: $(VENV)/.dev ## hold two runs of the bench against each other: BEFORE=a.json AFTER=b.json
	$(BIN)/python -m tests.bench compare $(BEFORE) $(AFTER)

.PHONY: bench-routing
bench-routing: $(VENV)/.dev ## failover and isolation under faults: amplification, another tenant's latency, refusals
	$(BIN)/python -m tests.bench.isolation

.PHONY: bench-overload
bench-overload: $(VENV)/.dev ## five times what the router can serve: goodput, refusals, recovery; five minutes
	$(BIN)/python -m tests.bench.overload

.PHONY: bench-growth
bench-growth: $(VENV)/.dev ## how the router's cost grows: 10 to 10,000 tenants, 1 to 1,000 streams; four minutes
	$(BIN)/python -m tests.bench.growth

.PHONY: bench-ledger
bench-ledger: $(VENV)/.dev ## the ledger's part at full size: a million events replayed, 10 million rows; half an hour
	$(BIN)/python -m tests.bench.ledger

.PHONY: lock
lock: $(BIN)/uv ## resolve the dependencies anew and pin them by hash
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header requirements/bootstrap.in -o requirements/bootstrap.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header pyproject.toml clients/pyproject.toml -o requirements/runtime.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header requirements/real.in -o requirements/real.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header requirements/fuzz.in -c requirements/runtime.txt -o requirements/fuzz.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header pyproject.toml clients/pyproject.toml --group dev -c requirements/runtime.txt -o requirements/dev.txt

.PHONY: clean
clean: ## remove what the targets made; the data directory stays
	rm -rf .venv .venv-3.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* bench-results.json bench-ledger-results.json bench-growth-results.json
