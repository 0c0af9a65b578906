# Everything is installed into .venv; nothing outside this folder is touched.
#   PORT=3000            where `make serve` listens
#   RERUNS=0             how often `make test` tries a test again that failed; it says so
#   TORCH_INDEX_URL=     an index with other builds of torch, such as the CPU builds of download.pytorch.org/whl/cpu

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PORT ?= 3000
RERUNS ?= 0
TORCH := $(shell grep '^torch==' requirements.txt)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# pip asks for a hash of every line, and torch has none
HASHED = install --require-hashes --no-deps -r <(grep -v '^torch==' $<)

$(VENV)/torch: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH) $(if $(TORCH_INDEX_URL),--index-url '$(TORCH_INDEX_URL)')
	touch $@

$(VENV)/run: requirements.txt $(VENV)/torch
	$(PIP) $(HASHED)
	touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/run
	$(PIP) $(HASHED)
	touch $@

.PHONY: help
help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: install
install: $(VENV)/run ## install what the service needs

$(BIN)/sana: $(VENV)/run
	printf '#!/bin/sh\nPYTHONPATH="%s$${PYTHONPATH:+:$$PYTHONPATH}" exec "%s/python" -m sana_service "$$@"\n' \
		'$(CURDIR)' '$(CURDIR)/$(BIN)' > $@
	chmod +x $@

.PHONY: cli
cli: $(BIN)/sana ## make the command .venv/bin/sana

.PHONY: serve
serve: $(VENV)/run ## start the service on PORT (default 3000)
	BENTOML_CONTAINERIZED=true $(BIN)/bentoml serve service:Sana --port $(PORT)

.PHONY: test
test: $(VENV)/dev ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not timing' --reruns $(RERUNS) -rR
	$(BIN)/python -m pytest -m timing --reruns 2 -rR

.PHONY: browser-tools
browser-tools: $(VENV)/dev ## get what the tests of the page and of foreign clients need (Debian, root)
	apt-get install -y chromium nodejs npm redis-server
	cd tests/clients && npm install --no-audit --no-fund --no-package-lock --ignore-scripts

.PHONY: test-browser
test-browser: $(VENV)/dev ## run the tests of the page and of foreign clients
	$(BIN)/python -m pytest -n 2 --dist loadfile -rs tests/page tests/clients tests/jobs

# Without root, and without the daemon that installing the package would start.
APT := apt-get -qq -o Dir::State::Lists=$$PWD/lists -o Dir::Cache=$$PWD/cache -o APT::Sandbox::User=

.PHONY: deploy-tools
deploy-tools: $(VENV)/dev ## get what checks the deployment files (Debian)
	$(BIN)/python -m deploy.tools $(VENV)
	test -x $(BIN)/promtool || { type -P promtool && type -P prometheus; } || { mkdir -p $(VENV)/debian/{lists,cache/archives}/partial && cd $(VENV)/debian \
		&& $(APT) update && $(APT) download prometheus && dpkg-deb -x prometheus_*.deb . \
		&& ln -sf ../debian/usr/bin/{promtool,prometheus} ../bin/ && rm -r lists cache prometheus_*.deb; }

.PHONY: test-deploy
test-deploy: $(VENV)/dev ## check dashboard, alerts, chart and compose file
	$(BIN)/python -m pytest -n 2 --dist loadfile -rs tests/deploy

.PHONY: lint
lint: $(VENV)/dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/dev ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: fuzz
fuzz: $(VENV)/dev ## run the fuzzers of the API and of every parser at length
	SANA_FUZZ_EXAMPLES=300 $(BIN)/python -m pytest tests/e2e/test_schemathesis.py
	SANA_FUZZ_EXAMPLES=3000 $(BIN)/python -m pytest tests/test_fuzz.py $(if $(SEED),--hypothesis-seed=$(SEED))

.PHONY: attack
attack: $(VENV)/dev ## send ten thousand bad requests, and see what is left of them
	SANA_ATTACKS=10000 $(BIN)/python -m pytest -rP tests/chaos/test_attack.py

.PHONY: chaos
chaos: $(VENV)/dev ## ten minutes of faults, restarts and bad clients; summary in results/chaos.json
	$(BIN)/python -m tests.chaos.run --seconds 600 --out results/chaos.json

.PHONY: overload
overload: $(VENV)/dev ## measure goodput and probes at 2, 5 and 10 times the capacity
	$(BIN)/python -m tests.chaos.overload --out results/overload.json

.PHONY: soak
soak: $(VENV)/dev ## three quarters of an hour at 80 % load: slopes of memory and open files
	$(BIN)/python -m tests.chaos.soak --seconds 1800 --out results/soak.json

.PHONY: sbom
sbom: $(VENV)/run ## write the software bill of materials, CycloneDX, to sbom.json
	$(BIN)/python -m tools.sbom sbom.json

.PHONY: bench
bench: $(VENV)/dev ## measure everything with a minute of load on the bundled model
	$(BIN)/python -m loadtests suite loadtests/suites/sample.toml --out results/sample --again

.PHONY: bench-engine
bench-engine: $(VENV)/dev ## compare the engine with the stock pipelines on this CPU
	$(BIN)/python -m tests.performance.engine

.PHONY: bench-devices
bench-devices: $(VENV)/dev ## measure the scheduler before one to eight simulated devices
	$(BIN)/python -m tests.performance.devices

.PHONY: bench-served
bench-served: $(VENV)/dev ## measure the whole service before one to eight simulated devices; wants sixteen cores
	$(BIN)/python -m tests.performance.served

.PHONY: bench-gpu
bench-gpu: $(VENV)/dev ## compare the engine with the stock pipelines on this GPU; again until nothing is left
	$(BIN)/python -m tests.performance.gpu

.PHONY: bench-load-gpu
bench-load-gpu: $(VENV)/dev ## measure the full size on this GPU; again until nothing is left
	$(BIN)/python -m loadtests suite loadtests/suites/h100.toml --out results/h100 --limit-seconds 540

.PHONY: bench-proof
bench-proof: $(VENV)/dev ## compare the harness with queues of known latency, at length
	SANA_QUEUE_REQUESTS=20000 $(BIN)/python -m pytest -rs tests/loadtests/test_queues.py

.PHONY: container-proof
container-proof: $(VENV)/dev ## build the image and show that it serves, without Docker (Debian, root, podman)
	$(BIN)/python -m tests.container.prove

.PHONY: replicas-proof
replicas-proof: $(VENV)/dev ## kill, drain and hang replicas behind HAProxy under load (Debian: haproxy redis-server)
	$(BIN)/python -m tests.replicas.prove

.PHONY: build
build: $(VENV)/run ## build the Bento
	$(BIN)/bentoml build

LOCK := --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
	--excludes <(echo torch) --no-header --no-annotate -q pyproject.toml

.PHONY: lock
lock: ## pin the requirements anew, with hashes; needs uv
	uv pip compile $(LOCK) -o $(VENV)/requirements.txt
	uv pip compile $(LOCK) -c $(VENV)/requirements.txt --all-extras -o requirements-dev.txt
	{ echo '# No hash: the CPU and the CUDA builds of one version share its number.'; echo '$(TORCH)'; \
		cat $(VENV)/requirements.txt; } > requirements.txt

.PHONY: clean
clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
