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
# After one `make native`, every target builds again when a source of it has changed.
READY = $(if $(wildcard $(VENV)/.native),$(VENV)/.native,$(VENV)/.installed)

# $(call needs,PROGRAM,how to get it), the latter without a comma: what is missing, in words.
needs = command -v $(1) >/dev/null || { echo "no $(1) on PATH: $(2)" >&2; exit 1; }
NEEDS_GO = $(call needs,go,install Go $(1) or newer: https://go.dev/dl)
NEEDS_NPM = $(call needs,npm,install Node.js with npm: https://nodejs.org)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1
# A shell that forbids bytecode files makes every process of every test compile all sources again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: demo
demo: $(READY) ## watch a rollout in the terminal (ARGS="--scenario errors")
	$(BIN)/rolloutd demo $(ARGS)

# Kafka, a store, the daemon, an example app and Prometheus, in the background; no Docker.
STACK := .cache/local
RUN_STACK = PYTHONPATH=ops/kafka:ops/local $(BIN)/python -m local_stack
.PHONY: up
up: $(READY) ## start the whole stack on this machine, without Docker; again: what runs where
	@$(RUN_STACK) up "$(STACK)"

.PHONY: down
down: $(READY) ## end what `make up` started, and remove its files
	@$(RUN_STACK) down "$(STACK)"

.PHONY: example-fastapi
example-fastapi: $(READY) ## roll out the checkout of a FastAPI app (BAD=1: roll it back)
	@BAD=$(BAD) PYTHONPATH=ops/examples $(BIN)/python -m checkout.run

.PHONY: example-flagd
example-flagd: $(READY) ## the same, with flagd's evaluation inside the app (BAD=1)
	@BAD=$(BAD) PYTHONPATH=ops/examples $(BIN)/python -m checkout.flagd

.PHONY: example-curl
example-curl: $(READY) ## a whole rollout by hand, with only curl and kcat
	@PYTHONPATH=ops/examples $(BIN)/python -m by_hand.run

.PHONY: example-go
example-go: ## emit both events from Go to the Kafka at KAFKA (ARGS="user-1 user-2")
	@$(call NEEDS_GO,1.24)
	@cd ops/examples/go && go run . $(ARGS)

.PHONY: example-java
example-java: ## the same from Java
	@$(call needs,mvn,install a JDK of Java 17 or newer and Maven \
		(Debian: apt-get install default-jdk-headless maven))
	@mvn --batch-mode --quiet --file ops/examples/java/pom.xml compile exec:java \
		-Dexec.args="$(ARGS)"

.PHONY: example-javascript
example-javascript: ## the same from Node.js
	@$(NEEDS_NPM)
	@npm ci --prefix ops/examples/javascript --ignore-scripts --no-audit --no-fund \
		--loglevel=error >&2
	@node ops/examples/javascript/emit.mjs $(ARGS)

# In a virtual environment of its own: 260 MB of packages that agree with few of ours.
PREFECT := .cache/prefect
.PHONY: example-prefect
example-prefect: $(READY) $(PREFECT)/.installed ## roll out a Prefect flow's steps (BAD=1: one back)
	@BAD=$(BAD) PREFECT_PYTHON=$(PREFECT)/bin/python PYTHONPATH=ops/examples \
		$(BIN)/python -m batches.run

.PHONY: test-prefect
test-prefect: $(READY) $(PREFECT)/.installed ## all ends of the Prefect example: 8 minutes
	PREFECT_PYTHON=$(PREFECT)/bin/python $(PYTEST) -m long -o faulthandler_timeout=900 \
		tests/e2e/test_examples.py tests/integration/test_prefect_runs.py $(ARGS)

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
test-all: $(READY) ## rare cases too, with more examples, cases and rounds: 35 minutes
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

.PHONY: fold-fuzz
fold-fuzz: $(VENV)/.native ## ten million hostile records through both folds (ARGS="--records N")
	$(BIN)/python -m tests.hostile.fold_fuzz $(ARGS)

.PHONY: chaos-all
chaos-all: $(READY) ## every long crash test, also with planted bugs: hours (ARGS for pytest)
	$(PYTEST) -m "chaos" -o faulthandler_timeout=7200 -s $(ARGS)

# In a virtual environment of its own: 34 MB of compiled inference, for Linux only, that no other
# test needs.
LLAMA := .cache/llama
.PHONY: llama
llama: $(READY) $(LLAMA)/.installed ## the advisor against llama.cpp's real server, a tiny model
	ROLLOUTD_TEST_LLAMA_PYTHON=$(LLAMA)/bin/python $(PYTEST) -m "integration or long" \
		-o faulthandler_timeout=3600 -s tests/integration/test_llama_server.py $(ARGS)

$(LLAMA)/.installed: tests/llama.lock
	test -x $(LLAMA)/bin/python || "$(PYTHON)" -m venv $(LLAMA)
	$(LLAMA)/bin/python -m pip install --quiet --require-hashes --requirement $<
	touch $@

# The Go module proxy has Ollama's source, and tests/ollama/go.sum its hashes. Since 0.30 it starts
# llama.cpp's server as a process: here the one of the wheel above.
OLLAMA := .cache/ollama
OLLAMA_PACKAGE := github.com/ollama/ollama
OLLAMA_VERSION = $(shell sed -n 's|.*$(OLLAMA_PACKAGE) v\([0-9.]*\).*|\1|p' tests/ollama/go.mod)
.PHONY: ollama
ollama: $(READY) $(LLAMA)/.installed $(OLLAMA)/bin/ollama ## the advisor against a real Ollama
	mkdir -p $(OLLAMA)/lib/ollama
	printf '#!/bin/sh\nexec "%s/bin/python" "%s" "$$@"\n' "$(CURDIR)/$(LLAMA)" \
		"$(CURDIR)/tests/ollama/llama_server.py" > $(OLLAMA)/lib/ollama/llama-server
	printf '#!/bin/sh\nexec cp "$$2" "$$3"\n' > $(OLLAMA)/lib/ollama/llama-quantize
	chmod +x $(OLLAMA)/lib/ollama/*
	ROLLOUTD_TEST_OLLAMA=$(OLLAMA) ROLLOUTD_TEST_LLAMA_PYTHON=$(LLAMA)/bin/python $(PYTEST) \
		-m "integration or e2e or long" -o faulthandler_timeout=3600 -s \
		tests/integration/test_ollama.py tests/e2e/test_ollama_demo.py $(ARGS)

$(OLLAMA)/bin/ollama: tests/ollama/go.mod tests/ollama/go.sum
	@$(call NEEDS_GO,1.26)
	@echo "building Ollama $(OLLAMA_VERSION) into $(OLLAMA) (once, three minutes of a core)"
	cd tests/ollama && go build -mod=readonly -trimpath -o "$(CURDIR)/$@" \
		-ldflags "-s -w -X=$(OLLAMA_PACKAGE)/version.Version=$(OLLAMA_VERSION)" $(OLLAMA_PACKAGE)

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
	@$(NEEDS_NPM)
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
		tests/integration/test_unleash_sdk.py tests/integration/test_unleash_faults.py \
		tests/integration/test_compose_unleash.py $(ARGS)

# Programs from the Go module proxy, and the definitions of KEDA's resources from its module.
KUBERNETES := .cache/kubernetes
KUSTOMIZE_VERSION := v5.8.1
KUBE_SCORE_VERSION := v1.20.0
HELM_VERSION := v4.3.1
KEDA_VERSION := v2.18.0
KUBERNETES_BUILT := $(KUBERNETES)/.built-$(KUSTOMIZE_VERSION)-$(KUBE_SCORE_VERSION)-$(HELM_VERSION)
.PHONY: kubernetes
kubernetes: $(READY) $(KUBERNETES_BUILT) ## the manifests by kustomize, helm, kube-score; needs Go
	ROLLOUTD_TEST_KUBERNETES=$(KUBERNETES) $(PYTEST) -m "unit or integration" \
		tests/unit/test_kubernetes.py tests/integration/test_kubernetes.py \
		tests/integration/test_helm.py $(ARGS)

$(KUBERNETES_BUILT):
	@$(call NEEDS_GO,1.26)
	@echo "building kustomize, kube-score and helm (once, a few minutes)"
	mkdir -p $(KUBERNETES)/bin $(KUBERNETES)/keda
	export GOBIN="$(CURDIR)/$(KUBERNETES)/bin"; \
		go install sigs.k8s.io/kustomize/kustomize/v5@$(KUSTOMIZE_VERSION); \
		go install github.com/zegl/kube-score/cmd/kube-score@$(KUBE_SCORE_VERSION); \
		go install helm.sh/helm/v4/cmd/helm@$(HELM_VERSION)
	keda="$$(go mod download -json github.com/kedacore/keda/v2@$(KEDA_VERSION) \
		| sed -nE 's/^\t"Dir": "(.*)",$$/\1/p')" && \
		install -m 0644 "$$keda"/config/crd/bases/keda.sh_*.yaml $(KUBERNETES)/keda/
	touch $@

# Rust; without it the reference in Python counts the same, at a fraction of the speed.
.PHONY: native
native: $(VENV)/.native ## build the native fold: a fifth to a third of the CPU; needs Rust 1.85

NATIVE := controller/counting/native
$(VENV)/.native: $(VENV)/.installed $(wildcard $(NATIVE)/src/*.rs $(NATIVE)/src/*/*.rs) \
		$(NATIVE)/Cargo.toml $(NATIVE)/crates.lock $(NATIVE)/build.py
	@$(call needs,cargo,install Rust 1.85 or newer: https://rustup.rs)
	@echo "building the native fold (a minute at first)"
	CARGO_TARGET_DIR="$(CURDIR)/.cache/native" $(BIN)/python $(NATIVE)/build.py
	@touch $@
	@echo "built; a rolloutd that runs already counts natively once it is started again"

.PHONY: reference
reference: ## undo `make native`: count by the reference in Python
	@rm -f $(VENV)/.native controller/counting/_native.abi3.so
	@echo "a rolloutd that starts from now on counts by the reference; one that runs goes on natively"

.PHONY: bench
bench: $(VENV)/.native ## breach to 0 % served, events and evaluations per second: 10 minutes
	PYTHONPATH=ops/kafka $(BIN)/python -m tests.benchmarks.breach
	PYTHONPATH=ops/kafka $(BIN)/python -m tests.benchmarks.daemon
	$(BIN)/python -m tests.benchmarks.ofrep

.PHONY: bench-statistics
bench-statistics: $(READY) ## false alarms, delay, power: about an hour (ARGS="--runs 400")
	$(BIN)/python -m tests.benchmarks.detection $(ARGS)
	$(BIN)/python -m tests.benchmarks.late_harm
	$(BIN)/python -m tests.benchmarks.fault_to_zero

.PHONY: schemas
schemas: $(READY) ## write schemas/json, asyncapi.yaml and openapi.yaml from the models
	$(BIN)/python -m schemas.generate

.PHONY: golden
golden: $(READY) ## keep what this release stores, for the tests of later ones (ARGS="--again")
	PYTHONPATH=ops/kafka $(BIN)/python -m tests.golden.record $(ARGS)

.PHONY: dashboards
dashboards: $(READY) ## write ops/grafana/dashboards from ops/grafana/generate.py
	$(BIN)/python ops/grafana/generate.py

# Debian's packages, unpacked and not installed: no service is started.
PROMETHEUS := .cache/prometheus
PROMETHEUS_PACKAGES := prometheus prometheus-alertmanager prometheus-blackbox-exporter
.PHONY: prometheus
prometheus: ## fetch a real Prometheus, Alertmanager and blackbox exporter for the tests
	@$(call needs,apt-get,these are Debian packages; elsewhere put the programs on PATH)
	test -x $(PROMETHEUS)/usr/bin/prometheus-blackbox-exporter || { \
		mkdir -p $(PROMETHEUS) && cd $(PROMETHEUS) && apt-get -qq download $(PROMETHEUS_PACKAGES) && \
		for package in *.deb; do dpkg -x "$$package" .; done && rm *.deb; }
	# Debian's Alertmanager reads its templates below /usr/share, where nothing is installed.
	LC_ALL=C sed -i 's|/usr/share/prometheus/alertmanager|usr//share/prometheus/alertmanager|g' \
		$(PROMETHEUS)/usr/bin/prometheus-alertmanager

.PHONY: lock
lock: ## resolve the newest allowed packages for Python 3.11 and up into the lock files
	@$(NEEDS_PYTHON)
	"$(PYTHON)" -m venv .cache/lock
	.cache/lock/bin/pip install --quiet "uv==$(UV_VERSION)"
	$(COMPILE) pyproject.toml $(LOCKED_EXTRAS:%=--extra %) --output-file requirements.lock
	$(COMPILE) pyproject.toml --extra otlp --extra oidc --constraint requirements.lock \
		--output-file ops/requirements-runtime.lock
	printf 'hatchling\nmaturin\npip-audit\ncyclonedx-python-lib[json-validation]\n' | \
		$(COMPILE) - --constraint requirements.lock --output-file $(RELEASE_LOCK)
	printf 'xllamacpp\ngguf\n' | $(COMPILE) - --output-file tests/llama.lock
	$(COMPILE) ops/examples/batches/requirements.txt \
		--output-file ops/examples/batches/requirements.lock
	echo UnleashClient | $(COMPILE) - --output-file tests/unleash/requirements.lock
	$(COMPILE) ops/examples/checkout/requirements.txt --constraint requirements.lock \
		--output-file ops/examples/checkout/requirements.lock
	printf 'kubernetes-validate\ncheck-jsonschema\n' | $(COMPILE) - \
		--output-file tests/manifests.lock

# All but `native`: that is ours, and on no index.
LOCKED_EXTRAS := demo grpc otlp oidc apprise dev
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

# With the tools of a lock file of its own: the same commit gives the same bytes.
RELEASE := .cache/release
RELEASE_LOCK := ops/release/requirements.lock
.PHONY: release
release: $(RELEASE)/.installed ## wheels, SBOM, licenses, audit, SHA256SUMS into dist/; needs Rust
	PYTHONPATH=ops/release $(RELEASE)/bin/python -m make_release $(ARGS)

# In a Debian root of its own (which needs root and debootstrap), and in an empty home.
INSTALL := .cache/install
.PHONY: test-install
test-install: $(READY) $(RELEASE)/.installed ## install, use and remove a release, in a bare root
	PYTHONPATH=ops/release $(RELEASE)/bin/python -m make_release --out $(INSTALL)/release
	ROLLOUTD_TEST_RELEASE=$(INSTALL)/release $(PYTEST) -m long -o faulthandler_timeout=3600 -s \
		tests/e2e/test_install.py $(ARGS)

.PHONY: test-image
test-image: $(READY) ## build ops/Dockerfile without Docker, and run what is in it; needs buildah
	$(PYTEST) -m long -o faulthandler_timeout=3600 -s tests/e2e/test_image.py $(ARGS)

$(RELEASE)/.installed: $(RELEASE_LOCK)
	@$(NEEDS_PYTHON)
	test -x $(RELEASE)/bin/python || "$(PYTHON)" -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --require-hashes --only-binary=:all: \
		--requirement $<
	touch $@

.PHONY: clean
clean: ## remove the virtual environment, what was built, and all caches
	@test ! -d $(STACK) || $(RUN_STACK) down "$(STACK)"
	rm -f controller/counting/_native.abi3.so
	rm -rf dist $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# A changed lock file or changed metadata installs again; a changed source need not.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(NEEDS_PYTHON)
	@echo "installing the locked packages into $(VENV) (once, about a minute)"
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
