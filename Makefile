# Every target sets up what it needs in virtual environments of this checkout and touches nothing outside it.
# Needed beforehand: Python 3.11 or newer, a Rust toolchain (with rustfmt and clippy for `make test`), make and bash.

PYTHON ?= python3
# What pip installs for the tests of torch input, and for `make compare`. On Linux the default brings its CUDA libraries along.
TORCH ?= torch
# Passed on to the two kinds of benchmarks, to maturin's release build, to the comparison and to the studies.
CRITERION_FLAGS ?=
PYTEST_BENCH_FLAGS ?= --benchmark-autosave
WHEEL_FLAGS ?=
COMPARE_FLAGS ?= --rows 50000
STUDY_FLAGS ?=
# How long `make fuzz` runs, on every core, and where it writes a corpus that reaches as much.
FUZZ_SECONDS ?= 600
FUZZ_SAVE ?= target/fuzz-corpus.txt
# What runs an aarch64 program, and the processors that it stands for: with i8mm, with dotprod alone, with neither.
QEMU_AARCH64 ?= qemu-aarch64 -L /usr/aarch64-linux-gnu
AARCH64_CPUS ?= max neoverse-n1 cortex-a72

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# maturin refuses to choose between two active environments.
MATURIN := env -u CONDA_PREFIX VIRTUAL_ENV=$(CURDIR)/$(VENV) PIP_QUIET=1 $(CURDIR)/$(BIN)/maturin
# One interpreter for every build script, whatever `python3` on the PATH is.
export PYO3_PYTHON := $(CURDIR)/$(PY)

RUST_SOURCES := Cargo.toml $(wildcard Cargo.lock) captree-core/Cargo.toml $(shell find captree-core/src -name '*.rs')
PYTHON_SOURCES := pyproject.toml README.md $(shell find python -type f -not -name '*.so' -not -name '*.pyc')

HOST = $(shell rustc -vV | sed -n 's/host: //p')
CORPUS := captree-core/fuzz/corpus.txt

section = @printf '\n=== %s  %s\n' "$$(date +%T)" '$(1)'

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs wheel dev clean compare fuzz sanitize crash \
        lint-rust lint-python lint-genmodel test-rust test-fuzz test-docs-rust test-stubs test-benches test-torch test-genmodel \
        test-python test-aarch64 bench-data study-scenes study-clipart

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-captree .venv-torch/.stamp-genmodel ## captree's story on real data, then a tiny generator: minutes once built
	$(BIN)/captree demo --out demo-out
	.venv-torch/bin/genmodel demo --out demo-out/genmodel

test: lint-rust test-rust test-fuzz test-docs-rust lint-python test-stubs test-benches test-torch lint-genmodel test-genmodel test-python ## Run every check and every test

lint: lint-rust lint-python ## Formatters, clippy, ruff and mypy, warnings as errors

bench: bench-data ## Benchmark the Rust core (criterion) and the Python package (pytest-benchmark)
	$(call section,criterion)
	cargo bench --workspace --benches -- $(CRITERION_FLAGS)
	$(call section,pytest-benchmark)
	$(PY) -m pytest benches $(PYTEST_BENCH_FLAGS)

compare: .venv-bench/.stamp-captree ## Measure captree beside its peers; writes a table, a plot and benches/record/*.json
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE .venv-bench/bin/python -m benches.compare $(COMPARE_FLAGS)

study-scenes: .venv-torch/.stamp-genmodel ## The study on rendered scenes: hours; goes on where it stopped
	cd genmodel && ../.venv-torch/bin/python -m studies.scenes $(STUDY_FLAGS)

study-clipart: .venv-torch/.stamp-genmodel ## The study on clip art: an hour; first make its images: python tools/make_clipart.py
	cd genmodel && ../.venv-torch/bin/python -m studies.clipart $(STUDY_FLAGS)

# Counters of branches, for the host's programs alone: build scripts have nothing that would keep them.
fuzz: export RUSTFLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
fuzz: ## Open, verify and ask damaged tree folders for ten minutes (FUZZ_SECONDS), on every core
	cargo build -p captree-fuzz --target-dir target/fuzz --target $(HOST)
	@status=0; jobs=(); for core in $$(seq $$(nproc 2>/dev/null || sysctl -n hw.ncpu)); do \
		target/fuzz/$(HOST)/debug/captree-fuzz --seconds $(FUZZ_SECONDS) --corpus $(CORPUS) --save $(FUZZ_SAVE).$$core & \
		jobs+=($$!); \
	done; for job in "$${jobs[@]}"; do wait $$job || status=1; done; exit $$status

# `make test` runs a small part of this.
crash: $(VENV)/.stamp-captree ## Kill every change of a tree at 500 random moments; 10,000 appends
	CAPTREE_CRASHES=500 $(PY) -m pytest tests/crash

# rustc keeps sanitizers for its nightly versions; the variable makes this one take the option.
sanitize: export RUSTC_BOOTSTRAP := 1
sanitize: export RUSTFLAGS := -Zsanitizer=address
sanitize: ## The modules with unsafe code, and a minute of damaged folders, under AddressSanitizer
	cargo test -p captree-core --lib --target-dir target/sanitize --target $(HOST) -- distance:: sketch::kernel sample::order store::
	cargo run -p captree-fuzz --target-dir target/sanitize --target $(HOST) -- --seconds 60 --seed 2 --corpus $(CORPUS)

docs: test-docs-rust $(VENV)/.stamp-captree ## Build the Rust API docs (target/doc) and run the examples of README.md and docs/
	$(PY) -m pytest tests/test_docs.py

wheel: $(VENV)/.stamp-tools ## Build the release wheel (abi3, CPython 3.11+) and the sdist into dist/, and check both
	$(PY) $(PIP_INSTALL) --group release
	rm -rf dist
	$(MATURIN) build --release --strip --sdist --out dist $(WHEEL_FLAGS)
	$(PY) -m twine check --strict dist/*
	CAPTREE_DIST=dist $(PY) -m pytest tests/test_package.py

dev: $(VENV)/.stamp-captree ## Install captree for development: Python sources live, the Rust core rebuilt by `make dev`
	@echo "captree is installed in $(VENV): source $(BIN)/activate"

clean: ## Remove everything that was built, the virtual environments included
	rm -rf .venv .venv-torch .venv-bench target build dist demo-out python/captree/*.so
	rm -rf .hypothesis .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find python tests benches -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the parts of `make test`

lint-rust: $(VENV)/.stamp-tools
	$(call section,cargo fmt)
	cargo fmt --all --check
	$(call section,cargo clippy)
	cargo clippy --workspace --all-targets -- -D warnings
	$(call section,cargo clippy --features python)
	cargo clippy --workspace --all-targets --features python -- -D warnings

test-rust:
	$(call section,cargo test: unit$(comma) property and doc tests)
	cargo test --workspace

test-fuzz:
	$(call section,a minute of damaged and forged tree folders)
	cargo run -p captree-fuzz -- --seconds 60 --seed 1 --corpus $(CORPUS)

test-docs-rust:
	$(call section,cargo doc$(comma) warnings as errors)
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

lint-python: $(VENV)/.stamp-tools
	$(call section,ruff)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(call section,mypy --strict)
	$(PY) -m mypy

test-stubs: $(VENV)/.stamp-captree
	$(call section,stubtest)
	$(PY) -m mypy.stubtest captree --mypy-config-file pyproject.toml --allowlist tests/stubtest-allowlist.txt --ignore-unused-allowlist

test-benches: $(VENV)/.stamp-captree
	$(call section,benchmarks as tests: every expected answer checked once on small data)
	$(PY) -m benches.prepare --quick
	CAPTREE_BENCH=quick cargo test --workspace --benches
	CAPTREE_BENCH=quick $(PY) -m pytest benches --benchmark-disable -q

test-torch: .venv-torch/.stamp-captree
	$(call section,pytest: torch tensors$(comma) the built wheel in an environment of its own)
	.venv-torch/bin/python -P -m pytest tests/with_torch --confcutdir tests/with_torch

lint-genmodel: .venv-torch/.stamp-genmodel
	$(call section,mypy --strict: genmodel)
	cd genmodel && ../.venv-torch/bin/python -m mypy --strict src

test-genmodel: .venv-torch/.stamp-genmodel
	$(call section,pytest: genmodel)
	cd genmodel && ../.venv-torch/bin/python -m pytest -q

test-python: $(VENV)/.stamp-captree build/wheel/.stamp
	$(call section,pytest)
	$(PY) -m pytest tests --ignore tests/with_torch

# No part of `make test`. The first processor runs all tests, the others those of sketches and scans, which treat processors
# unlike.
test-aarch64: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER ?= aarch64-linux-gnu-gcc
test-aarch64: ## The Rust core's tests for 64-bit Arm under emulation (see CONTRIBUTING.md)
	@filter=; for cpu in $(AARCH64_CPUS); do \
		printf '\n=== %s  cargo test: %s, emulated\n' "$$(date +%T)" "$$cpu"; \
		CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$(QEMU_AARCH64) -cpu $$cpu" \
			cargo test -p captree-core --target aarch64-unknown-linux-gnu --lib $$filter || exit 1; \
		filter="-- sketch:: scan::"; \
	done

bench-data: $(VENV)/.stamp-captree
	$(PY) -m benches.prepare

comma := ,

# ---- set-up; a stamp file is younger than everything it was made from

$(VENV)/.stamp-tools: pyproject.toml
	$(call section,setting up $(VENV))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "captree needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	@command -v cargo >/dev/null || { echo "captree needs a Rust toolchain: there is no cargo on the PATH (https://rustup.rs)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) $(PIP_INSTALL) 'pip>=25.1'
	$(PY) $(PIP_INSTALL) --group dev
	@touch $@

$(VENV)/.stamp-captree: $(VENV)/.stamp-tools $(RUST_SOURCES) pyproject.toml README.md
	$(call section,building captree)
	$(MATURIN) develop --release
	@touch $@

# The same compiled objects as in the development install, packed as a user gets them.
build/wheel/.stamp: $(VENV)/.stamp-captree $(RUST_SOURCES) $(PYTHON_SOURCES)
	$(call section,packing the wheel)
	rm -rf build/wheel
	$(MATURIN) build --release --out build/wheel
	@touch $@

.venv-torch/.stamp-tools: Makefile
	$(call section,setting up .venv-torch: the first time downloads torch$(comma) on Linux about 2.5 GB with its CUDA libraries)
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python $(PIP_INSTALL) --no-cache-dir numpy pytest $(TORCH)
	@touch $@

.venv-torch/.stamp-captree: .venv-torch/.stamp-tools build/wheel/.stamp
	.venv-torch/bin/python $(PIP_INSTALL) --force-reinstall --no-deps build/wheel/*.whl
	@touch $@

# genmodel needs captree, which no index has yet: it finds the wheel that was just installed.
.venv-torch/.stamp-genmodel: .venv-torch/.stamp-captree genmodel/pyproject.toml
	$(call section,setting up genmodel in .venv-torch)
	.venv-torch/bin/python $(PIP_INSTALL) --no-cache-dir --editable 'genmodel[clip,ldm,evaluate,logs,demo,test]'
	@touch $@

.venv-bench/.stamp-tools: benches/requirements.txt
	$(call section,setting up .venv-bench with the peers)
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python $(PIP_INSTALL) --no-cache-dir -r benches/requirements.txt
	@touch $@

.venv-bench/.stamp-captree: .venv-bench/.stamp-tools build/wheel/.stamp
	.venv-bench/bin/python $(PIP_INSTALL) --force-reinstall --no-deps build/wheel/*.whl
	@touch $@
