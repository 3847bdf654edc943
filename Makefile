# SPDX-License-Identifier: Apache-2.0
# Every target works from a fresh clone; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CARGO ?= cargo
CORE := host/core
CORE_SOURCES = $(shell find $(CORE) -path '*/target' -prune -o -path '*/fuzz' -prune -o \
                 \( -name '*.rs' -o -name '*.toml' -o -name Cargo.lock -o -name '*.h' \) -type f -print)
PY_SOURCES := host/tmem_host tests scripts $(wildcard guest/agent)
FUZZ_SECONDS ?= 600
OUT ?= out/demo

.PHONY: help deps build core guests module module-check capi qemu libvirt box nested-box vagrant-test comparators check lint rust-test py-test test demo fuzz lock clean distclean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

deps: ## install the system packages that are missing (needs root or sudo only then)
	@scripts/install-deps

build: deps core ## install what is missing, build the core, leave .venv/bin/tmem

core: $(VENV)/.core ## rebuild the Rust core into the virtual environment

$(VENV)/.requirements: requirements.lock
	@scripts/check-toolchain $(PYTHON) $(CARGO)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --only-binary :all: -r requirements.lock
	touch $@

$(VENV)/.core: $(VENV)/.requirements pyproject.toml $(CORE_SOURCES)
	@echo 'building the Rust core (a minute or two the first time)'
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --quiet --locked >/dev/null
	touch $@

guests: build ## build the guest images that are not in the cache yet
	$(BIN)/python -m tmem_host.vm.images build

module: build ## build the guest's module for every guest kernel, if it is not in the cache yet
	$(BIN)/python -m tmem_host.vm.modulebuild build

module-check: build ## checkpatch.pl and sparse over the guest's module
	@$(BIN)/python -m tmem_host.vm.modulebuild check

capi: ## build the core's C ABI, which the patched QEMU links
	@scripts/check-toolchain $(PYTHON) $(CARGO)
	cd $(CORE) && $(CARGO) rustc --quiet --release --locked -p tmem-capi --crate-type staticlib
	mkdir -p $(CORE)/target/capi
	cp -u $(CORE)/target/release/libtmem_capi.a $(CORE)/capi/include/tmem_capi.h $(CORE)/target/capi/

qemu: build capi ## build the patched QEMU of qemu-patches/, if it is not in the cache yet
	@qemu-patches/build

libvirt: $(VENV)/.libvirt ## libvirt-python in the virtual environment, for 'tmem vm attach' and Vagrant

$(VENV)/.libvirt: $(VENV)/.requirements requirements-libvirt.lock
	@scripts/install-deps libvirt
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-libvirt.lock
	touch $@

box: build libvirt ## the box and the kernel of vagrant/settings.toml, if they are not in the cache yet
	@scripts/install-deps vagrant
	@$(BIN)/python -m tmem_host.vm.boxbuild build

NESTED_BOX = TMEM_VAGRANT_ROLE=host $(BIN)/python -m tmem_host.vm.boxbuild build

nested-box: box ## the box of a nested host, if it is not in the cache yet; needs Python 3.11
	@$(NESTED_BOX)

vagrant-test: box ## from the box to guests that swap, by REST, and back to nothing (minutes)
	$(BIN)/pytest -rs tests/vagrant

lint: build ## ruff, mypy, rustfmt, clippy
	$(BIN)/ruff check $(PY_SOURCES)
	$(BIN)/ruff format --check $(PY_SOURCES)
	$(BIN)/mypy
	cd $(CORE) && $(CARGO) fmt --all --check
	cd $(CORE) && $(CARGO) clippy --quiet --workspace --all-targets --locked -- -D warnings

rust-test: build ## the Rust tests
	cd $(CORE) && $(CARGO) test --quiet --workspace --locked

py-test: build ## the Python tests that boot no virtual machine
	$(BIN)/pytest -q -m 'not vm and not slow' -n auto --dist loadfile

check: lint rust-test py-test ## the quick ring: lint, types, Rust and Python tests without virtual machines

test: lint rust-test guests module module-check qemu box ## everything, with virtual machines; the last line is pytest's summary
	@$(NESTED_BOX) || echo 'tmem: no box of a nested host, for the reason above' >&2
	$(BIN)/pytest -rs -p no:xdist

comparators: build ## what the benches compare with (qemu-storage-daemon, fio of Debian 13), if it is not in the cache yet
	@$(BIN)/python -m tmem_host.bench.comparators show >/dev/null 2>&1 || \
	  $(BIN)/python -m tmem_host.bench.comparators build || \
	  echo 'tmem: no comparators, for the reason above: the channel bench and one arm of the store bench will have no figures' >&2

demo: guests comparators ## every bench in its quick setting, the verdict, one report; OUT=DIR chooses where it goes
	$(BIN)/tmem bench all --quick --out $(OUT)

fuzz: ## every fuzz target for FUZZ_SECONDS each (600)
	@scripts/fuzz $(FUZZ_SECONDS)

lock: $(VENV)/.requirements ## resolve requirements.lock and Cargo.lock anew
	$(BIN)/python -m pip install --quiet uv
	{ echo '# SPDX-License-Identifier: Apache-2.0'; \
	  $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --extra dev --no-annotate --quiet \
	    --custom-compile-command 'make lock' pyproject.toml; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	{ echo '# SPDX-License-Identifier: Apache-2.0'; \
	  echo 'libvirt-python>=9.0' | $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --quiet \
	    --no-annotate --custom-compile-command 'make lock' -; } > requirements.lock.new
	mv requirements.lock.new requirements-libvirt.lock
	cd $(CORE) && $(CARGO) update --quiet

clean: ## remove what a build made, except the virtual environment and the cache folder
	rm -rf $(CORE)/target $(CORE)/*/fuzz/target out test-evidence .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.core host/tmem_host/_core*.so
	find host tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the virtual environment
	rm -rf $(VENV)
