# Everything a person or the CI does here. `make` alone explains itself.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check fuzz e2e image cluster-up cluster-down crds manifests bench clean

CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/agentsandbox-cluster
HELM := $(CACHE)/bin/helm
# One set of features for every command, so that nothing is compiled twice.
FEATURES := --locked --features e2e
CRD := crds/agentsandboxes.agentsandbox.dev.yaml

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## From nothing to a contained agent, told step by step (root; leaves the cluster up)
	@e2e/demo

test: check fuzz ## Everything: checks, fuzzing, then the end-to-end suites on a fresh cluster, which is taken down after
	e2e/cluster/build
	e2e/cluster/up down
	trap '[ $$? = 0 ] || e2e/cluster/up logs 15 || true; e2e/cluster/up down' EXIT; e2e/cluster/up && scripts/agent-image && scripts/clients-image && scripts/image && e2e/run
	e2e/unenforced

check: $(HELM) ## Format, lints, unit tests, charts, and whether generated files are current; needs no cluster
	cargo fmt --check
	scripts/fuzz check
	cargo clippy $(FEATURES) --all-targets -- -D warnings
	cargo test $(FEATURES) --lib --bins --test plan --test render --test explain --test init --test chart
	@$(MAKE) --no-print-directory generated DIR=target/generated
	diff -ru --exclude .gitkeep --exclude Kustomization crds target/generated/crds || { echo "run 'make crds'" >&2; exit 1; }
	diff -u docs/api.md target/generated/api.md || { echo "run 'make crds'" >&2; exit 1; }
	diff -ru --exclude .gitkeep --exclude Kustomization crds charts/agentsandbox-crds/files || { echo "run 'make crds'" >&2; exit 1; }
	diff -u config/base/operator.yaml target/generated/operator.yaml || { echo "run 'make manifests'" >&2; exit 1; }
	@[ "$$(stat -c %s $(CRD))" -lt 65536 ] || { echo "$(CRD) is larger than 64 KiB" >&2; exit 1; }
	$(HELM) lint --strict --quiet charts/agentsandbox charts/agentsandbox-crds
	@for f in e2e/run e2e/demo e2e/install e2e/unenforced e2e/bench/run e2e/cluster/build e2e/cluster/up scripts/* fuzz/rustc .ci/run; do bash -n "$$f"; done
	@if command -v cargo-deny >/dev/null; then cargo deny check && (cd fuzz && cargo deny check); else echo "cargo-deny is not installed: licences and advisories not checked"; fi

fuzz: ## Fuzz each parser of untrusted bytes for FUZZ_SECONDS (20), and build it for that; see scripts/fuzz --help
	scripts/fuzz

e2e: ## Run the end-to-end suites on the cluster that is up (ARGS="e2e some_test" for a part)
	e2e/run $(ARGS)

image: ## Build the operator's image and push it to REGISTRY=registry.example/team, or to the cluster's own registry
	scripts/image

cluster-up: ## Build what is missing and start the cluster
	e2e/cluster/build
	e2e/cluster/up
	scripts/agent-image
	scripts/clients-image

cluster-down: ## Take the cluster down; nothing of it stays but the cache
	e2e/cluster/up down

crds: ## Write the definitions and their reference from the types, and the chart's copy of the definitions
	mkdir -p charts/agentsandbox-crds/files
	cargo run $(FEATURES) --quiet --bin agentsandbox -- crds --output crds --docs docs/api.md
	cp crds/*.yaml charts/agentsandbox-crds/files/

manifests: $(HELM) ## Write config/base from the chart
	$(HELM) template agentsandbox charts/agentsandbox -n agentsandbox-system --skip-tests >config/base/operator.yaml

# All of it into DIR, to compare.
.PHONY: generated
generated: $(HELM)
	rm -rf $(DIR)
	mkdir -p $(DIR)
	cargo run $(FEATURES) --quiet --bin agentsandbox -- crds --output $(DIR)/crds --docs $(DIR)/api.md
	$(HELM) template agentsandbox charts/agentsandbox -n agentsandbox-system --skip-tests >$(DIR)/operator.yaml

bench: ## Measure what docs/benchmarks.md lists for it, on the cluster, which is started if it is not up (root; about 8 min)
	@# With the image's settings, so that nothing is compiled twice.
	RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=target/image \
	  cargo bench --locked --target "$$(rustc -vV | sed -n 's/^host: //p')" --bench plan -- --quick
	e2e/bench/run $(ARGS)

clean: ## Remove what the build wrote; the cluster's cache stays
	cargo clean

$(HELM):
	e2e/cluster/build helm
