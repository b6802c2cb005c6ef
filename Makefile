# Python 3.11+, make and git suffice; everything else comes into .venv by itself.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
T ?=
# Test processes; the tests of a file stay in one, as they may share a platform. More than two per core, as they mostly
# wait; long files come first, and the many short unit tests fill the time in which the last long ones end.
JOBS ?= 5
PARALLEL = --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

##@ Try it
.PHONY: demo
demo: $(VENV)/ready  ## The whole story with simulators of REDCap, Twilio and mail; the console stays up on a terminal
	@$(BIN)/python -m tests.demo

.PHONY: run
run: .venv-run/ready  ## All processes with your own config.toml and an embedded Valkey (WEB_PORT, STATE, … see docs)
	@deploy/run

##@ Test it
.PHONY: test
test: $(VENV)/ready  ## Unit, contract, integration and hostile tests: about five minutes (T=path or -k… narrows)
	@$(BIN)/python -m pytest $(PARALLEL) $(if $(filter tests/%,$(T)),,--ignore=tests/faults --ignore=tests/properties) $(T)

.PHONY: test-slow
test-slow: $(VENV)/ready  ## Random histories, and faults in real processes: about four minutes
	@$(BIN)/python -m pytest $(PARALLEL) tests/properties tests/faults $(T)

.PHONY: test-all
test-all: test test-slow  ## Every test that needs no container engine

.PHONY: test-unit
test-unit: $(VENV)/ready  ## Unit tests: about a minute
	@$(BIN)/python -m pytest $(PARALLEL) tests/unit $(T)

.PHONY: test-faults
test-faults: $(VENV)/ready  ## Kill, fill up and break the real processes: about eight minutes
	@$(BIN)/python -m pytest tests/faults $(T)

.PHONY: test-integration
test-integration: $(VENV)/ready  ## Gateways against simulators, and live workers on a real Valkey
	@$(BIN)/python -m pytest $(PARALLEL) tests/contract tests/integration $(T)

.PHONY: lint
lint: $(VENV)/ready  ## Style, words, security rules, strict types, manifests, and the documentation built strictly
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/codespell --builtin '' --dictionary docs/words.txt --skip 'shared/domain/wording/*,*.png,docs/words.txt' \
		shared web worker docs deploy .github Makefile Dockerfile *.md *.yml config.example.toml
	@$(BIN)/properdocs build --strict --config-file mkdocs.yml
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	@$(BIN)/kubernetes-validate --quiet --strict --kubernetes-version 1.30.0 $(filter-out %/kustomization.yaml,$(wildcard deploy/kubernetes/*.yaml))

##@ Measure it
FULL ?=
.PHONY: bench
bench: $(VENV)/ready  ## Benchmarks beside their alternatives; writes docs/explanation/benchmarks.md (FULL=1: larger; HOSPITAL=1: 500 studies)
	@$(BIN)/python -m tests.benchmarks $(if $(FULL)$(HOSPITAL),--full) $(if $(HOSPITAL),--only hospital)

.PHONY: measure
measure: $(VENV)/ready  ## How large and how plain the code is: lines, functions, complexity
	@$(BIN)/python -m tests.measure

##@ Deploy it
.PHONY: deployment
deployment:  ## Make the folder ./deployment (configuration, fresh secrets) and .env, which names it
	@deploy/new-deployment

.PHONY: up
up:  ## Build and start the containers, and wait until all are healthy
	@deploy/up

.PHONY: apply
apply:  ## Validate the configuration, then wait until all processes have taken it; restart only what needs it
	@deploy/apply

.PHONY: down
down:  ## Stop and remove the containers; the data stays in its volume
	@deploy/compose --profile '*' down --remove-orphans

.PHONY: logs
logs:  ## Follow the logs (S=worker: of one service)
	@deploy/compose logs --follow --tail 100 $(S)

.PHONY: ps
ps:  ## Show container status
	@deploy/compose ps --all

.PHONY: scale
scale:  ## Run this many containers from now on: make scale WORKERS=4 WEB=2
	@deploy/scale "$(WORKERS)" "$(WEB)"

.PHONY: upgrade
upgrade:  ## Build the images and replace the containers while webhooks go on arriving
	@deploy/upgrade

.PHONY: backup
backup:  ## One snapshot of Redis into backups/ (TO=folder)
	@deploy/backup $(TO)

.PHONY: restore
restore:  ## Put a snapshot back, then reconcile: make restore FILE=backups/optout-….rdb.gz (RECONCILE=no: for a drill)
	@RECONCILE=$(RECONCILE) deploy/restore $(FILE)

.PHONY: new-ledger
new-ledger:  ## Start with an empty ledger after the hash key was replaced; the old one is kept in the volume
	@deploy/new-ledger

.PHONY: test-compose
test-compose: $(VENV)/ready  ## The containers, really run: builds, faults, scaling, upgrade, backup (needs Docker; T=… narrows)
	@OPTOUT_COMPOSE_TESTS=1 $(BIN)/python -m pytest $(PARALLEL) tests/compose $(T)

##@ Keep it
.PHONY: format
format: $(VENV)/ready  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: lock
lock:  ## Compile the hashed locks in requirements/ from pyproject.toml (needs uv)
	@requirements/lock

.PHONY: clean
clean:  ## Remove .venv and caches; .state (the embedded Valkey's data) stays
	@rm -rf $(VENV) .venv-run .pytest_cache .mypy_cache .ruff_cache .hypothesis site *.egg-info

# install FOLDER,LOCK: the packages of a lock and the program, once; a dot for each package, so that it is seen to go on.
define install
set -euo pipefail; printf 'Installing %s packages into %s (once) ' "$$(grep -c '^[A-Za-z0-9].*==' $(2))" $(1); \
	$(PYTHON) -m venv $(1); \
	$(1)/bin/pip install --disable-pip-version-check --require-hashes -r $(2) | \
		awk '/^Collecting/ { printf "."; fflush() } /^Installing/ { printf " unpacking"; fflush() } END { print "" }'; \
	$(1)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
endef

# What the processes need, without what the tests need.
.venv-run/ready: requirements/run.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	@$(call install,.venv-run,requirements/run.txt)
	@touch $@

$(VENV)/ready: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	@$(call install,$(VENV),requirements/dev.txt)
	@touch $@

.PHONY: help
help:  ## Show these targets
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-zA-Z_-]+:.*##/ {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
