# `make help` lists the targets. What they need on the machine (Rust, a C compiler, Go, npm, Python with pip, make) is
# checked by `scripts/setup.py`, which keeps what it fetches and builds in ~/.cache/kubemeter (or KUBEMETER_CACHE).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# The targets share cargo's lock and the terminal: nothing is gained by running two at once.
.NOTPARALLEL:

PYTHON ?= python3
SETUP = @command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) is missing: install Python 3.9 or later' >&2; exit 1; }; \
  $(PYTHON) scripts/setup.py
PROFILE ?= release
export PROFILE
CARGO_PROFILE = $(if $(filter debug,$(PROFILE)),dev,$(PROFILE))

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-18s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: quickstart
quickstart: setup ## See it work: usage from real events in one terminal (ONCE=1: check the numbers and end)
	cargo build --locked --release
	@$(PYTHON) scripts/quickstart.py $(if $(ONCE),--once)

.PHONY: test
test: setup setup-kubernetes lint ## Pass every test, against a real ClickHouse and a real Kubernetes API server
	cargo test --locked --no-fail-fast
	$(MAKE) test-shards

.PHONY: test-shards
test-shards: setup ## Pass the tests of counting again, on two shards
	KUBEMETER_TEST_SHARDS=1 cargo test --locked --no-fail-fast --test it -- counting:: customers:: windows:: edits:: behind:: retention::

.PHONY: lint
lint: ## Check formatting, lints, licences of dependencies
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	@$(PYTHON) scripts/dependencies.py

.PHONY: build
build: ## Build kubemeter (PROFILE=debug: unoptimised)
	cargo build --locked --profile $(CARGO_PROFILE)

.PHONY: setup
setup: ## Check the machine; fetch the ClickHouse engine, helm and kubectl
	$(SETUP) check engine tools

.PHONY: setup-kubernetes
setup-kubernetes: ## Build etcd, kube-apiserver and kube-controller-manager, once (5 to 10 minutes on 2 cores); fetch Prometheus
	$(SETUP) kubernetes prometheus

.PHONY: crds
crds: ## Write crds/ and the chart's copy anew from the Rust types
	@mkdir -p crds
	cargo run --locked --quiet -- crds | \
	  awk 'BEGIN {split("meters customers", name)} /^---$$/ {file = "crds/" name[++n] ".yaml"; next} {print > file}'
	cp crds/*.yaml charts/kubemeter/files/crds/

# No symbols of lines, but those of functions, for backtraces; the Dockerfile builds the same.
IMAGE_BUILD = cargo build --locked --release --target x86_64-unknown-linux-musl --config 'profile.release.strip="debuginfo"'

.PHONY: image
image: setup build ## Make the container images and the bill of materials, without a Docker daemon, in target/images/
	$(SETUP) static
	$(IMAGE_BUILD)
	@$(PYTHON) scripts/image.py kubemeter evaluation

.PHONY: e2e
e2e: setup-kubernetes image ## From helm install to its removal, on a real node with these images, under load (root, Linux)
	$(SETUP) node
	@$(PYTHON) scripts/image.py client
	@$(PYTHON) tests/rig/node.py --seconds 1500 $(foreach name,kubemeter kubemeter-evaluation kubemeter-client, \
	  --image $(or $(CARGO_TARGET_DIR),target)/images/$(name).tar) -- $(PYTHON) tests/e2e/flow.py

.PHONY: bench
bench: ## Measure ingest, queries, memory, backfill against their aims, and write docs/performance.md (ARGS="--only PART", --quick: only print)
	$(SETUP) rust engine
	cargo build --locked --release
	cargo run --locked --release --example bench -- $(or $(ARGS),--write)

.PHONY: bench-operator
bench-operator: setup setup-kubernetes build ## Measure the operator with 1,000 Meters and 1,000 Customers (ARGS=--write)
	@$(PYTHON) scripts/bench_operator.py $(ARGS)

.PHONY: simulate
simulate: setup setup-kubernetes ## Live SEEDS=n histories against the model, from SEED=s on (STEPS=n: their length)
	KUBEMETER_SIMULATION_SEEDS=$(or $(SEEDS),1) KUBEMETER_SIMULATION_SEED=$(SEED) KUBEMETER_SIMULATION_STEPS=$(STEPS) \
	  KUBEMETER_SIMULATION_SHRINK_SECONDS=$(or $(SHRINK),120) cargo test --locked --test simulation -- --nocapture

.PHONY: cluster-up
cluster-up: setup setup-kubernetes build ## Run Kubemeter on a real API server on this machine, in the background
	@$(PYTHON) scripts/cluster.py up

.PHONY: cluster-down
cluster-down: ## End what cluster-up started; its data stay in .cluster/
	@$(PYTHON) scripts/cluster.py down

.PHONY: clean
clean: cluster-down ## Remove what was built and the local cluster's data; the cache of fetched parts stays
	cargo clean
	rm -rf .cluster .quickstart .kubemeter .node
