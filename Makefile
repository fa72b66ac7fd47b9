# Everything starts here. `make` alone lists the targets.
#
# Variables: TARN_BUILD_DIR (or CARGO_TARGET_DIR) puts build output elsewhere than ./target; TARN_CACHE_DIR keeps downloads;
# ARGS passes arguments on, as in `make serve ARGS='--listen 127.0.0.1:9000'` or `make test ARGS='-p replica'`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup serve test test.rust test.python check image bench tour.data analytics.shell analytics.reset

export CARGO_TARGET_DIR ?= $(or $(TARN_BUILD_DIR),$(CURDIR)/target)
TARN := $(CARGO_TARGET_DIR)/debug/tarn
PYTHON := vendor/venv/bin/python
ARGS ?=

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z.]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

setup: ## Fetch pinned parts into vendor/ (the other targets do it themselves).
	@scripts/setup --test --shell

serve: ## Set up, build, and run the server on http://127.0.0.1:8642 with the embedded store in volumes/.
	@scripts/setup
	@cargo build --bin tarn
	@exec "$(TARN)" serve $(ARGS)

test: test.rust test.python ## Set up, build, and run all tests.

test.rust:
	@scripts/setup --test --shell
	cargo test --workspace $(ARGS)

test.python: test.rust
	TARN_BINARY="$(TARN)" $(PYTHON) -m pytest tests

check: ## Formatting, lints, tests, licences, links in the docs: what a change must pass.
	@scripts/setup --test --deny
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo fetch --locked
	vendor/cargo-deny --offline check bans licenses sources
	scripts/check-links
	$(MAKE) --no-print-directory test

image: ## Build the container image tarn:latest (docker-compose.yml runs it).
	@scripts/setup --worker
	@cargo build --bin tarn --bin tarn-worker
	@scripts/stage-image "$(TARN)"
	docker build --tag tarn:latest .

bench: ## Measure, as ratios against DuckDB in-process, and write docs/performance.md (about 25 minutes).
	@scripts/setup --test
	cargo build --bin tarn --bin tarn-worker --examples
	TARN_BINARY="$(TARN)" $(PYTHON) bench/run.py $(ARGS)

tour.data: ## Put the tour's data (flights, planes, metrics, knowledge) into the embedded store's bucket sm-default-processed.
	@scripts/setup --test
	@mkdir -p volumes/objects && cp -r vendor/data/sm-default-processed volumes/objects/
	@echo "volumes/objects/sm-default-processed: $$(find volumes/objects/sm-default-processed -type f | wc -l) files"

analytics.shell: ## Open DuckDB's own shell, read-only, on the published dev database.
	@scripts/setup --shell
	@exec scripts/analytics-shell $(ARGS)

analytics.reset: ## Drop the dev mart and start it empty (asks first; FORCE=1 does not).
	@scripts/analytics-reset
