# obanrs: `make help` lists the targets.
#
# Everything that is built goes into target/ (the drivers under test into tests/drivers/node_modules). What is
# installed or downloaded, tools/setup, drivers, postgres and deny say. Tests and the demo run their own servers from a private copy of the Postgres installation
# (tests/support/installation.rs), so that a server which runs on this machine keeps its files.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# Which Postgres: any of its pg_config programs.
PG_CONFIG ?= $(shell tools/setup --which-pg-config)
PG_MAJOR = $(shell "$(PG_CONFIG)" --version | sed -E 's/[^0-9]*([0-9]+).*/\1/')
FEATURES = --no-default-features --features pg$(PG_MAJOR)

# The suites and the demo speak with servers over sockets: built once, they test every major.
HARNESS_PG_CONFIG ?= $(PG_CONFIG)
HARNESS_MAJOR = $(shell "$(HARNESS_PG_CONFIG)" --version | sed -E 's/[^0-9]*([0-9]+).*/\1/')
HARNESS_FEATURES = --no-default-features --features pg$(HARNESS_MAJOR),real_server
harness = PGRX_PG_CONFIG_PATH="$(HARNESS_PG_CONFIG)" OBANRS_PG_CONFIG="$(PG_CONFIG)" OBANRS_PACKAGE="$(1)"
# What `make test-all` tests besides the first; 17 is the build with assertions (tools/postgres).
OTHER_MAJORS = 16 17 18

export PGRX_HOME := $(CURDIR)/target/pgrx
# Where tools/setup puts a cargo-pgrx beside one of another version that is the user's own.
export PATH := $(CURDIR)/target/tools/bin:$(PATH)
# Not from the environment: RUSTFLAGS would take pgrx's linker flags away, without which the extension
# has no schema, and a backtrace would go into the DETAIL of every error.
unexport RUSTFLAGS CARGO_ENCODED_RUSTFLAGS RUST_BACKTRACE CARGO_TARGET_DIR CARGO_BUILD_TARGET

BENCH_PACKAGE = $(CURDIR)/target/package/pg$(PG_MAJOR)-bench
# Quicker to build than a release: for the first look.
DEBUG_PACKAGE = $(CURDIR)/target/package/pg$(PG_MAJOR)-debug
RELEASE_PACKAGE = $(CURDIR)/target/package/pg$(PG_MAJOR)-release
TEST_PACKAGE = $(CURDIR)/target/package/pg$(PG_MAJOR)-test

# Several targets build in the same folders.
.NOTPARALLEL:
.PHONY: help setup drivers package test-package demo demo-release test test-logic test-structure test-backend pgrx-test test-server test-all ci check bench bench-bus bench-leaders bench-gossip bench-jobs bench-staging bench-workers soak comments reference figures archive install clean
.PHONY: all licenses dist test-dist deb test-deb test-image

help: ## lists the targets
	@echo 'Usage: make TARGET [PG_CONFIG=/path/to/pg_config]'
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  %-16s %s\n", $$1, $$2 }'

setup: ## installs what is missing to build and to test (Debian's packages, cargo-pgrx)
	@tools/setup

all: package ## the same as package, as PGXN's client asks for it

package: setup ## builds the release extension into target/package
	@tools/package "$(PG_CONFIG)" "$(RELEASE_PACKAGE)"

test-package: setup
	@tools/package "$(PG_CONFIG)" "$(TEST_PACKAGE)" --debug --features pg_test

demo: setup ## shows the whole path on a server of its own: notify, elect, gossip, fail over
	@tools/package "$(PG_CONFIG)" "$(DEBUG_PACKAGE)" --debug
	@tools/demo "$(PG_CONFIG)" "$(DEBUG_PACKAGE)"

demo-release: package
	@tools/demo "$(PG_CONFIG)" "$(RELEASE_PACKAGE)"

test: test-logic test-structure test-backend test-server ## every test
	@echo 'All suites passed.'

test-logic: setup ## the rules, without a server; waking in every order of its steps
	PGRX_PG_CONFIG_PATH="$(PG_CONFIG)" cargo test $(FEATURES) --lib logic::
	PGRX_PG_CONFIG_PATH="$(PG_CONFIG)" cargo test $(FEATURES) --test loom -- --skip logic::

test-structure: setup ## which part of src depends on which; what the documents say of the project
	PGRX_PG_CONFIG_PATH="$(PG_CONFIG)" cargo test $(FEATURES) --test structure
	PGRX_PG_CONFIG_PATH="$(PG_CONFIG)" cargo test $(FEATURES) --test documents

figures: setup ## writes the figures of README and docs from benches/results
	OBANRS_WRITE_FIGURES=1 PGRX_PG_CONFIG_PATH="$(PG_CONFIG)" cargo test $(FEATURES) --test documents -- quoted_figures

test-backend: test-package ## the functions, inside a backend
	$(call harness,$(TEST_PACKAGE)) cargo test $(HARNESS_FEATURES) --test backend

pgrx-test: setup ## cargo pgrx test, on a private copy of the Postgres of PG_CONFIG; TEST=name picks some
	@tools/pgrx-test "$(PG_CONFIG)" $(TEST)

drivers: setup
	@tools/drivers

test-server: package drivers ## real servers, real clients; kills and restarts
	$(call harness,$(RELEASE_PACKAGE)) cargo test $(HARNESS_FEATURES) --test server

test-all: ## every test and the demo on Postgres 15 to 18, which it gets if they are missing
	@harness=$$(tools/postgres 15); \
	$(MAKE) PG_CONFIG="$$harness" test demo-release; \
	$(call on_others,test-backend test-server demo-release)

ci: check test pgrx-test demo-release ## what CI runs: all on one major, the backend tests and the demo on the others
	@$(call on_others,test-backend demo-release)

# On each other major, the targets $(1).
on_others = harness=$$(tools/postgres 15); \
	for major in $(OTHER_MAJORS); do \
		config=$$(tools/postgres $$major); \
		"$$config" --version; \
		$(MAKE) PG_CONFIG="$$config" HARNESS_PG_CONFIG="$$harness" $(1); \
	done

check: package test-structure ## formatting, lints on every major, the install script, the dependencies, the tarball
	cargo fmt --check
	@PGRX_PG_CONFIG_PATH="$(PG_CONFIG)" cargo clippy --all-targets $(FEATURES),real_server -- -D warnings; \
	for major in $(OTHER_MAJORS); do \
		config=$$(tools/postgres $$major); \
		echo "clippy for $$("$$config" --version)"; \
		feature=pg$$("$$config" --version | sed -E 's/[^0-9]*([0-9]+).*/\1/'); \
		PGRX_PG_CONFIG_PATH="$$config" cargo clippy --lib --no-default-features --features $$feature,pg_test -- -D warnings; \
	done
	tools/pgspot "$(RELEASE_PACKAGE)$$("$(PG_CONFIG)" --sharedir)"/extension/obanrs--*.sql sql/archive/*.sql
	tools/deny
	PG_CONFIG="$(PG_CONFIG)" tools/dist --test

bench: bench-leaders bench-gossip bench-jobs bench-staging bench-workers bench-bus figures ## what it costs, into benches/results (80 minutes); BENCH=quick: whether it runs

bench-bus: setup ## what a wake-up costs (35 minutes)
	@tools/package "$(PG_CONFIG)" "$(BENCH_PACKAGE)" --features bench
	$(call harness,$(BENCH_PACKAGE)) cargo test $(HARNESS_FEATURES) --bench bus -- $(BENCH)

bench-leaders: setup ## how long a name is without a leader (5 minutes)
	@tools/package "$(PG_CONFIG)" "$(BENCH_PACKAGE)" --features bench
	$(call harness,$(BENCH_PACKAGE)) cargo test $(HARNESS_FEATURES) --bench leaders -- $(BENCH)

bench-jobs: setup ## what the triggers on oban_jobs cost (10 minutes)
	@tools/package "$(PG_CONFIG)" "$(BENCH_PACKAGE)" --features bench
	$(call harness,$(BENCH_PACKAGE)) cargo test $(HARNESS_FEATURES) --bench jobs -- $(BENCH)

bench-staging: setup ## how late a due job is, and what a burst costs (15 minutes)
	@tools/package "$(PG_CONFIG)" "$(BENCH_PACKAGE)" --features bench
	$(call harness,$(BENCH_PACKAGE)) cargo test $(HARNESS_FEATURES) --bench staging -- $(BENCH)

bench-workers: setup ## how fast workers get jobs, beside other job systems (15 minutes)
	@tools/package "$(PG_CONFIG)" "$(BENCH_PACKAGE)" --features bench
	@mkdir -p target/bench-workers && cp benches/workers/package*.json benches/workers/others.mjs target/bench-workers && cd target/bench-workers && npm ci --silent
	$(call harness,$(BENCH_PACKAGE)) cargo test $(HARNESS_FEATURES) --bench workers -- $(BENCH)

bench-gossip: setup ## what gossip costs (8 minutes)
	@tools/package "$(PG_CONFIG)" "$(BENCH_PACKAGE)" --features bench
	$(call harness,$(BENCH_PACKAGE)) cargo test $(HARNESS_FEATURES) --bench gossip -- $(BENCH)

soak: package drivers ## the tests that take minutes
	$(call harness,$(RELEASE_PACKAGE)) cargo test $(HARNESS_FEATURES) --test server -- --ignored soak

comments: ## writes the comments of sql/90_finish.sql into the script that updates to this version
	@tools/comments

reference: comments package ## writes docs/reference.md from the comments in the database
	OBANRS_WRITE_REFERENCE=1 $(call harness,$(RELEASE_PACKAGE)) \
	cargo test $(HARNESS_FEATURES) --test server -- the_reference_is

licenses: setup ## writes THIRD-PARTY-LICENSES, after a change of Cargo.lock
	OBANRS_WRITE_LICENSES=1 PGRX_PG_CONFIG_PATH="$(PG_CONFIG)" cargo test $(FEATURES) --test documents -- third_party

archive: package ## keeps the install script of this version, at its release, in sql/archive
	@script=obanrs--$$(sed -nE 's/^version = "(.*)"/\1/p' Cargo.toml).sql; \
	if [ -e "sql/archive/$$script" ]; then echo "$$script is released: raise the version in Cargo.toml"; exit 1; fi; \
	cp "$(RELEASE_PACKAGE)$$("$(PG_CONFIG)" --sharedir)/extension/$$script" sql/archive/

dist: ## the tarball and the zip of a release from the commit that is checked out, in target/dist
	@tools/dist

test-dist: setup ## builds and installs from the tarball, in a folder of its own
	@PG_CONFIG="$(PG_CONFIG)" tools/dist --test --build

# What `make package` has built is taken if nothing was changed since: `sudo make install` finds no Rust.
install: ## into the Postgres of PG_CONFIG; then set shared_preload_libraries and restart it
	@library="$(RELEASE_PACKAGE)$$("$(PG_CONFIG)" --pkglibdir)/obanrs.so"; \
	if [ ! -e "$$library" ] || \
		[ -n "$$(find Cargo.toml Cargo.lock obanrs.control src sql -newer "$$library" -print -quit)" ]; then \
		$(MAKE) package; \
	fi
	@tools/install "$(PG_CONFIG)" "$(RELEASE_PACKAGE)"

deb: package ## makes the Debian package of the extension, in target/deb
	@deb=$$(tools/deb "$(PG_CONFIG)" "$(RELEASE_PACKAGE)" "$(CURDIR)/target/deb/pg$(PG_MAJOR)"); \
	echo "Made $$deb. To install it, as root: apt install $$deb"

DEB_MAJORS = 15 16 17 18
test-deb: setup ## installs, upgrades, removes and purges the packages on clean Debian roots (root or sudo)
	@tools/test-deb $(DEB_MAJORS)

test-image: ## does the Dockerfile's steps in a clean Debian root (root or sudo)
	@tools/test-image

clean: ## removes what was built
	rm -rf target tests/drivers/node_modules
