# Everything that newcomers, maintainers and CI run; `make` alone lists it. It needs Python 3.11+,
# make and git. The first use makes a virtual environment with hash-locked packages.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# The lock file was tried with 3.11 to 3.13, so these come first. A name on PATH may be a version
# manager's shim, or a Debian Python without venv, so the interpreter itself is asked.
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3.14 python3; do \
	"$$name" -c '$(USABLE)' 2>/dev/null && echo "$$name" && break; done)
NEEDS_PYTHON = test -n "$(PYTHON)" || { \
	echo "no Python 3.11 or newer with venv and ensurepip on PATH" >&2; exit 1; }
UV_VERSION := 0.13.8
PYTEST := $(BIN)/python -m pytest
# After one `make compiled`, every target compiles again when a source has changed.
READY = $(if $(wildcard $(VENV)/.compiled),$(VENV)/.compiled,$(VENV)/.installed)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1
# A shell that forbids bytecode files makes every process of every test compile all sources again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: demo
demo: $(READY) ## watch a rollout in the terminal (ARGS="--scenario errors")
	$(BIN)/rolloutd demo $(ARGS)

.PHONY: example-fastapi
example-fastapi: $(READY) ## roll out the checkout of a FastAPI app (BAD=1: roll it back)
	@BAD=$(BAD) PYTHONPATH=ops/examples $(BIN)/python -m checkout.run

# In a virtual environment of its own: 260 MB of packages that agree with few of ours.
PREFECT := .cache/prefect
.PHONY: example-prefect
example-prefect: $(READY) $(PREFECT)/.installed ## roll out a Prefect flow's transform (BAD=1: back)
	@BAD=$(BAD) PREFECT_PYTHON=$(PREFECT)/bin/python PYTHONPATH=ops/examples \
		$(BIN)/python -m batches.run

.PHONY: test-prefect
test-prefect: $(READY) $(PREFECT)/.installed ## both ends of the Prefect example: 4 minutes
	PREFECT_PYTHON=$(PREFECT)/bin/python $(PYTEST) -m long -o faulthandler_timeout=900 \
		tests/e2e/test_examples.py $(ARGS)

$(PREFECT)/.installed: ops/examples/batches/requirements.lock
	@echo "installing Prefect into $(PREFECT) (once, a minute or two)"
	test -x $(PREFECT)/bin/python || "$(PYTHON)" -m venv $(PREFECT)
	$(PREFECT)/bin/python -m pip install --quiet --require-hashes --requirement $<
	touch $@

# Most slow tests wait for a broker or a process, so there are more workers than a small machine has
# cores. WORKERS=0 runs all tests in one process.
WORKERS ?= 5
PARALLEL = --numprocesses=$(WORKERS) --dist=worksteal
# What lets tests skip where no real Kafka can be had; the command warns about that on stderr.
ALLOWANCE = allowance="$$(PYTHONPATH=ops/kafka $(BIN)/python -m tests.brokers)"

.PHONY: test
test: $(READY) ## every behavior, on the best Kafka there is: 8 minutes (ARGS for pytest)
	@$(ALLOWANCE); env $$allowance $(PYTEST) $(PARALLEL) $(ARGS)

.PHONY: test-all
test-all: $(READY) ## rare cases too, with more examples, cases and rounds: 45 minutes
	@$(ALLOWANCE); HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-thorough} \
		env $$allowance $(PYTEST) $(PARALLEL) -m "not long" $(ARGS)

.PHONY: check
check: $(READY) ## format, lint, types, import contracts, unit and property tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-quick} $(PYTEST) $(PARALLEL) \
		-m "(unit or property or spec) and not long and not rare" $(ARGS)

.PHONY: format
format: $(VENV)/.installed ## rewrite the code as ruff would have it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: chaos
chaos: $(READY) ## 200 kill -9 and 50 zombie rounds, then a recount: an hour (ARGS="--seed 1")
	$(BIN)/python -m tests.chaos.rounds --kills 200 --zombies 50 $(ARGS)

.PHONY: siege
siege: $(READY) ## twenty minutes of hostile input against one daemon (ARGS="--minutes 5")
	PYTHONPATH=ops/kafka $(BIN)/python -m tests.hostile.siege $(ARGS)

.PHONY: chaos-all
chaos-all: $(READY) ## every long crash test, also with planted bugs: hours (ARGS for pytest)
	$(PYTEST) -m "chaos" -o faulthandler_timeout=7200 -s $(ARGS)

# In a virtual environment of its own: 34 MB of compiled inference, for Linux only, that no other
# test needs.
LLAMA := .cache/llama
.PHONY: llama
llama: $(READY) ## the advisor against llama.cpp's real server with a tiny random model
	test -x $(LLAMA)/bin/python || "$(PYTHON)" -m venv $(LLAMA)
	$(LLAMA)/bin/python -m pip install --quiet --require-hashes --requirement tests/llama.lock
	ROLLOUTD_TEST_LLAMA_PYTHON=$(LLAMA)/bin/python $(PYTEST) -m "integration or long" \
		-o faulthandler_timeout=3600 -s tests/integration/test_llama_server.py $(ARGS)

.PHONY: flag-readers
flag-readers: $(READY) ## GO Feature Flag's own evaluation of our file; needs Go
	$(PYTEST) -m long -s tests/integration/test_go_feature_flag.py $(ARGS)

# A server of 400 npm packages, its database, and its Python SDK, which agrees with few of our
# versions. Node.js 22 comes with them; any Node.js with npm can fetch it. PostgreSQL is the
# machine's (Debian: apt-get install npm postgresql).
UNLEASH := .cache/unleash
export npm_config_update_notifier := false
.PHONY: unleash
unleash: $(READY) ## the Unleash plane against a real Unleash on PostgreSQL and its SDK: 4 minutes
	mkdir -p $(UNLEASH)
	cmp -s tests/unleash/package-lock.json $(UNLEASH)/installed.json || { \
		cp tests/unleash/package.json tests/unleash/package-lock.json $(UNLEASH)/ && \
		npm ci --prefix $(UNLEASH) --ignore-scripts --no-audit --no-fund --loglevel=error && \
		cp tests/unleash/package-lock.json $(UNLEASH)/installed.json; }
	test -x $(UNLEASH)/venv/bin/python || "$(PYTHON)" -m venv $(UNLEASH)/venv
	$(UNLEASH)/venv/bin/python -m pip install --quiet --require-hashes \
		--requirement tests/unleash/requirements.lock
	ROLLOUTD_TEST_UNLEASH=$(UNLEASH) $(PYTEST) -s -m "contract or integration" \
		tests/contract/test_unleash.py tests/contract/test_unleash_edits.py \
		tests/integration/test_unleash_sdk.py tests/integration/test_unleash_faults.py $(ARGS)

# hatch-mypyc puts the compiled modules, which pyproject.toml names, beside their sources. There the
# editable installation finds them.
.PHONY: compiled
compiled: $(VENV)/.compiled ## compile the counting loops: a seventh less CPU per event

# Types of imported modules become checks in the compiled ones, so those are sources too.
COMPILED_FROM := $(wildcard schemas/*.py controller/*.py controller/core/*.py \
	controller/counting/*.py)
$(VENV)/.compiled: $(VENV)/.installed $(COMPILED_FROM)
	@command -v cc >/dev/null || { \
		echo "no C compiler on PATH (Debian: apt-get install gcc libc6-dev python3-dev)" >&2; exit 1; }
	@echo "compiling the counting loops (a minute)"
	HATCH_BUILD_HOOK_ENABLE_MYPYC=1 \
		$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: interpreted
interpreted: ## undo `make compiled`
	rm -f $(VENV)/.compiled *__mypyc.*.so controller/counting/*.so

.PHONY: bench
bench: $(VENV)/.compiled ## breach to 0 % served, events and evaluations per second: 10 minutes
	PYTHONPATH=ops/kafka $(BIN)/python -m tests.benchmarks.breach
	PYTHONPATH=ops/kafka $(BIN)/python -m tests.benchmarks.throughput
	$(BIN)/python -m tests.benchmarks.ofrep

.PHONY: bench-statistics
bench-statistics: $(READY) ## false alarms, delay, power: about an hour (ARGS="--runs 400")
	$(BIN)/python -m tests.benchmarks.detection $(ARGS)
	$(BIN)/python -m tests.benchmarks.late_harm
	$(BIN)/python -m tests.benchmarks.fault_to_zero

.PHONY: schemas
schemas: $(READY) ## write schemas/json, asyncapi.yaml and openapi.yaml from the models
	$(BIN)/python -m schemas.generate

.PHONY: dashboards
dashboards: $(READY) ## write ops/grafana/dashboards from ops/grafana/generate.py
	$(BIN)/python ops/grafana/generate.py

# Debian's packages, unpacked and not installed: no service is started.
PROMETHEUS := .cache/prometheus
PROMETHEUS_PACKAGES := prometheus prometheus-alertmanager prometheus-blackbox-exporter
.PHONY: prometheus
prometheus: ## fetch a real Prometheus, Alertmanager and blackbox exporter for the tests
	test -x $(PROMETHEUS)/usr/bin/prometheus-blackbox-exporter || { \
		mkdir -p $(PROMETHEUS) && cd $(PROMETHEUS) && apt-get -qq download $(PROMETHEUS_PACKAGES) && \
		for package in *.deb; do dpkg -x "$$package" .; done && rm *.deb; }

.PHONY: lock
lock: ## resolve the newest allowed packages for Python 3.11 and up into the lock files
	@$(NEEDS_PYTHON)
	"$(PYTHON)" -m venv .cache/lock
	.cache/lock/bin/pip install --quiet "uv==$(UV_VERSION)"
	$(COMPILE) pyproject.toml --all-extras --output-file requirements.lock
	$(COMPILE) pyproject.toml --extra otlp --extra oidc --constraint requirements.lock \
		--output-file ops/requirements-runtime.lock
	printf 'hatchling\nhatch-mypyc\n' | $(COMPILE) - --constraint requirements.lock \
		--output-file ops/requirements-build.lock
	printf 'xllamacpp\ngguf\n' | $(COMPILE) - --output-file tests/llama.lock
	$(COMPILE) ops/examples/batches/requirements.txt \
		--output-file ops/examples/batches/requirements.lock
	echo UnleashClient | $(COMPILE) - --output-file tests/unleash/requirements.lock

# The files are read on other machines, so they hold no index address and no path. UPGRADE= keeps
# the versions that are pinned.
UPGRADE ?= --upgrade
LOCK_OPTIONS = --quiet $(UPGRADE) --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
COMPILE = .cache/lock/bin/uv pip compile $(LOCK_OPTIONS)

# Without build isolation: what builds it is in the lock file, so no index is asked.
.PHONY: wheel
wheel: $(VENV)/.installed ## build dist/rolloutd-VERSION-py3-none-any.whl, for pip and pipx
	rm -rf dist
	$(BIN)/python -m hatchling build --target wheel --directory dist

.PHONY: clean
clean: ## remove the virtual environment, what was built, and all caches
	rm -f *__mypyc.*.so controller/counting/*.so
	rm -rf dist $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# A changed lock file or changed metadata installs again; a changed source need not.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(NEEDS_PYTHON)
	@echo "installing the locked packages into $(VENV) (once, about a minute)"
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
