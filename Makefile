# Plinth's commands. `make` alone lists them. Targets are words for people; the work is done by cargo and tests/.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo build test unit clients rust-clients faults bench chaos fmt fmt-check lint deny doc \
	build-packages test-packages env forget-totals
# The stages of `make test` follow one another; cargo and the clusters use both cores as it is.
.NOTPARALLEL:

# Outside the clone, so that a fresh clone does not compile everything again.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/plinth/target

# RocksDB's C++ compiles once into a static library there, which cargo is told of. Cargo by hand: eval "$$(make -s env)" first,
# else RocksDB compiles again, the slow way.
export ROCKSDB_LIB_DIR := $(shell tests/rocksdb-library where)
export ROCKSDB_STATIC := 1

# ARGS: more arguments for the program that the target runs. JOBS: how many compilers at a time.
ARGS ?=
JOBS ?= $(shell nproc)
CARGO ?= cargo

BUILD_PACKAGES := clang libclang-dev g++ make
TEST_PACKAGES := awscli fuse3 git openssl restic s3fs sqlite3 strace python3-venv
DENY_VERSION := 0.20.2

TOOLS := $(CARGO_TARGET_DIR)/tools-$(DENY_VERSION)
DENY := $(TOOLS)/bin/cargo-deny
PLINTH := $(CARGO_TARGET_DIR)/debug/plinth
TOTALS := $(CARGO_TARGET_DIR)/totals
RUST_CLIENTS_TARGET := $(CARGO_TARGET_DIR)/rust-clients
RUST_CLIENTS := $(RUST_CLIENTS_TARGET)/debug/plinth-rust-clients
# One virtual environment per content of requirements.txt: a changed pin makes a new one.
VENV := $(CARGO_TARGET_DIR)/python-$(shell sha256sum tests/requirements.txt | cut -c1-12)
PYTHON := $(VENV)/bin/python

help: ## List every target
	@echo "Plinth. Targets of this Makefile (make TARGET, optionally ARGS='...'):"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 18
	@echo "Builds go to $(CARGO_TARGET_DIR) (set CARGO_TARGET_DIR to change it)."

demo: build ## Build, start a whole cluster in one process, prove it, print lines to paste (ARGS=--exit-after-selftest)
	@$(PLINTH) demo $(ARGS)

# Always the whole workspace: a part of it could resolve other features and compile RocksDB a second time.
build: build-packages ## Build everything (the first time about 10 minutes on 2 cores, 4 of them RocksDB's C++)
	$(CARGO) build --workspace -j $(JOBS)

test: forget-totals fmt-check lint deny unit clients faults ## All that must pass: format, lints, licences, all tests
	@python3 tests/totals.py $(TOTALS)

unit: build-packages ## The Rust tests of all crates, tests/tidy.rs among them
	@mkdir -p $(TOTALS)
	set -o pipefail; $(CARGO) test --workspace -j $(JOBS) 2>&1 | tee $(TOTALS)/rust.log

clients: build $(VENV)/ready rust-clients ## Real S3 clients against a cluster of separate processes (PLINTH_FULL=1: full sizes)
	@mkdir -p $(TOTALS)
	$(PYTHON) tests/s3/run.py --plinth $(PLINTH) --rust-clients $(RUST_CLIENTS) --totals $(TOTALS)/clients.json $(ARGS)

# The heavy Rust SDKs are a package of their own, so that the product's lock file and builds never see them.
rust-clients: build-packages ## Build the driver of the aws-sdk-s3 and object_store crates
	$(CARGO) build --locked --manifest-path tests/s3/rust/Cargo.toml --target-dir $(RUST_CLIENTS_TARGET) -j $(JOBS)

faults: build $(VENV)/ready ## Kill processes of a real cluster under load, count what was acknowledged, trace the disk path
	@mkdir -p $(TOTALS)
	$(PYTHON) tests/faults/run.py --plinth $(PLINTH) --totals $(TOTALS)/faults.json $(ARGS)

bench: build ## The bench table against a real cluster; writes bench/RESULTS.md (ARGS=--quick for a short one)
	$(CARGO_TARGET_DIR)/debug/plinth-bench table --plinth $(PLINTH) $(ARGS)

chaos: build $(VENV)/ready ## The fault tests for longer: PLINTH_FAULT_SECONDS for each fault, 120 unless told
	PLINTH_FAULT_SECONDS=$${PLINTH_FAULT_SECONDS:-120} $(PYTHON) tests/faults/run.py --plinth $(PLINTH) $(ARGS)

fmt: ## Format the Rust code
	$(CARGO) fmt --all

fmt-check: ## Fail when the Rust code is not formatted
	$(CARGO) fmt --all --check

lint: build-packages ## clippy over all targets, every warning an error
	$(CARGO) clippy --workspace --all-targets -j $(JOBS) -- -D warnings

deny: $(DENY) ## Licences, banned crates and sources, by cargo-deny (built once, about 5 minutes; PLINTH_SKIP_DENY=1 leaves it out)
	@if [ -n "$$PLINTH_SKIP_DENY" ]; then echo "PLINTH_SKIP_DENY is set: licences and banned crates are NOT checked"; \
	else $(DENY) --locked check bans licenses sources; fi

$(DENY):
	@if [ -n "$$PLINTH_SKIP_DENY" ]; then exit 0; fi; \
	echo "Building cargo-deny $(DENY_VERSION), once (about 5 minutes on 2 cores)"; \
	$(CARGO) install --quiet --locked cargo-deny@$(DENY_VERSION) --root $(TOOLS) --target-dir $(TOOLS)/build -j $(JOBS) \
	&& rm -rf $(TOOLS)/build

doc: build-packages ## The API documentation of our crates
	$(CARGO) doc --workspace --no-deps -j $(JOBS)

forget-totals:
	@rm -rf $(TOTALS)

env: ## Print what cargo wants in its environment outside of make
	@echo 'export CARGO_TARGET_DIR=$(CARGO_TARGET_DIR) ROCKSDB_LIB_DIR=$(ROCKSDB_LIB_DIR) ROCKSDB_STATIC=$(ROCKSDB_STATIC)'

build-packages:
	@tests/debian-packages $(BUILD_PACKAGES)
	@CXX=clang++ tests/rocksdb-library build
	@[ -x $(PLINTH) ] || echo "First build: about 6 more minutes on 2 cores; later builds take seconds to a minute."

test-packages:
	@tests/debian-packages $(TEST_PACKAGES)

$(VENV)/ready: tests/requirements.txt | test-packages
	@echo "Installing the pinned S3 clients into $(VENV)"
	@python3 -m venv --clear $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement tests/requirements.txt
	@touch $@
