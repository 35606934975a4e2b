# The commands a person types. `make` alone lists them. Each does its own set-up on a fresh machine.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?= data
PORT   ?= 8080

# Debian packages that the tests and benches start or ask: real servers, a real browser, real faults.
TEST_PACKAGES := redis-server nginx-light haproxy strace faketime prometheus chromium fonts-liberation \
  postgresql nftables iproute2
TEST_COMMANDS := redis-server nginx haproxy strace faketime promtool chromium pg_ctlcluster nft ip
# Debian puts nginx, haproxy and nft where only root looks.
export PATH := $(PATH):/usr/sbin

.PHONY: help serve test check bench scenarios docs lock clean
help: ## list these commands
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/'

serve: $(VENV)/runtime.done ## run the daemon on 127.0.0.1:8080 with a demo event
	@echo "==> starting Stanchion on http://127.0.0.1:$(PORT), data in $(DATA)/ (Ctrl-C stops it)"
	@exec $(BIN)/stanchion serve --demo --port $(PORT) --data $(DATA)

test: $(VENV)/test.done servers ## run style, types and all tests against real servers
	@echo "==> style and types"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@echo "==> tests (ten to fifteen minutes on two cores)"
	@exec $(BIN)/python -m pytest -n 2 --dist loadfile --durations 10

check: $(VENV)/test.done ## style, types and the quick tests only
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@exec $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

bench: $(VENV)/test.done servers ## measure everything, beside its floors; figures go to bench/results/
	@exec $(BIN)/python -m bench $(BENCH)

scenarios: $(VENV)/test.done servers ## the long campaigns: ranks, kills, redeems, draws, failovers, partitions, simulated lives
	@$(BIN)/python -m tests.scenarios.ranks --visitors 100000
	@$(BIN)/python -m tests.scenarios.crash --kills 50
	@$(BIN)/python -m tests.scenarios.redeem --kills 50
	@$(BIN)/python -m tests.scenarios.lobbies --kills 20
	@$(BIN)/python -m tests.scenarios.failover --kills 30
	@$(BIN)/python -m tests.scenarios.partitions
	@exec $(BIN)/python -m tests.simulation --seeds 20000

lock: $(VENV)/test.done ## pin every dependency anew, with hashes
	@$(BIN)/python -m pip install --quiet pip-tools
	@for extra in runtime test; do $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe \
	  --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	  $$( [ $$extra = test ] && echo --extra test ) --output-file requirements/$$extra.txt pyproject.toml; done

clean: ## remove what set-up made (never the data folder)
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@echo "==> making a virtual environment in $(VENV)/"
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed (set PYTHON=...)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); sh deploy/apt python3.11-venv && $(PYTHON) -m venv $(VENV); }

$(VENV)/runtime.done: $(BIN)/python requirements/runtime.txt pyproject.toml
	@echo "==> installing the daemon's libraries"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/runtime.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/test.done: $(VENV)/runtime.done requirements/test.txt
	@echo "==> installing what the tests need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/test.txt
	@touch $@

.PHONY: servers
servers:
	@for command in $(TEST_COMMANDS); do command -v $$command >/dev/null || missing=1; done; \
	[ -z "$$missing" ] || sh deploy/apt $(TEST_PACKAGES)
	@for command in $(TEST_COMMANDS); do command -v $$command >/dev/null \
	  || echo "could not install $$command: the tests that need it will fail"; done
