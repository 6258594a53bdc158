# Two commands do everything: `make run` serves the built-in model, `make test` tests it. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
UNAME := $(shell uname -s)-$(shell uname -m)
ENGINES := requirements/llama.txt
ifeq ($(UNAME),Darwin-arm64)
ENGINES := requirements/mlx.txt requirements/llama.txt
endif
# llama.cpp built with AMX instructions dies in its first large batch on the CPUs that have them.
ifneq (,$(findstring x86_64,$(UNAME)))
NO_AMX := -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
endif
BUILD := CFLAGS="$(CFLAGS) $(NO_AMX)" CXXFLAGS="$(CXXFLAGS) $(NO_AMX)" CMAKE_ARGS="-DLLAVA_BUILD=OFF $(CMAKE_ARGS)"
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes

help: ## list the commands
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.setup ## make .venv with everything kefu serves with (compiles llama.cpp once, some minutes)

.venv/.setup: pyproject.toml $(ENGINES)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit("kefu needs Python 3.11 or newer: make PYTHON=python3.12 setup" if sys.version_info < (3, 11) else 0)'
	@echo "Installing kefu. The engine, llama.cpp, is compiled for this machine: about 4 minutes, the first time only."
	@for file in $(ENGINES); do \
	  ( while sleep 15; do echo "  ... still working ($$SECONDS s)"; done ) & ticker=$$!; \
	  $(BUILD) $(PIP) -r $$file; status=$$?; kill $$ticker; wait $$ticker 2>/dev/null; [ $$status = 0 ] || exit $$status; \
	done
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --editable .
	@touch $@

.venv/.setup-dev: .venv/.setup requirements/dev.txt
	@echo "Installing the development tools."
	@$(PIP) -r requirements/dev.txt
	@touch $@

# pip chooses the build of torch for this machine; all else is pinned by hash, and nothing may come along with it.
.venv/.setup-train: .venv/.setup requirements/train.txt
	@echo "Installing the trainers: PyTorch, TRL and PEFT, 1.5 GB."
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet torch==2.13.0
	@$(PIP) --no-deps -r requirements/train.txt
	@touch $@

train: .venv/.setup-train ## install what `kefu round` trains with; then `make test` trains too

run: .venv/.setup ## serve the built-in model at http://127.0.0.1:8000
	@$(BIN)/kefu serve $(ARGS)

test: .venv/.setup-dev ## run every test, two files at a time (in Chromium too, where it is installed)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/.setup-dev ## lint, types, room walls, formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

fmt: .venv/.setup-dev ## format the code
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: .venv/.setup-dev ## measure; ARGS="--peer llama-server --model PATH" measures llama.cpp's own server beside it
	@$(BIN)/python -m bench $(ARGS)

loop: .venv/.setup-train .venv/.setup-dev ## a simulated month end to end, from conversations to a rollback; ARGS="--conversations 200" for a short one
	@$(BIN)/python -m bench.month $(ARGS)

e2e: .venv/.setup-dev ## only the browser tests
	@$(BIN)/python -m pytest -m e2e $(ARGS)

soak: .venv/.setup-dev ## the long tests
	@$(BIN)/python -m pytest -m soak $(ARGS)

ends: .venv/.setup-dev ## run the MLX tests with the oldest mlx-lm that pyproject.toml allows; `make test` runs the newest
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --upgrade --target .venv/mlx-low mlx-lm==0.32.0
	@PYTHONPATH=.venv/mlx-low $(BIN)/python -m pytest tests/conformance tests/backends/mlx -m "not soak" $(ARGS)

lock: .venv/.setup-dev ## resolve the dependencies again into requirements/ (needs uv)
	@for extra in base llama mlx mcp dev train; do \
	  uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 \
	    $$([ $$extra = base ] || echo "--extra $$extra -c requirements/base.txt") pyproject.toml -o requirements/$$extra.txt; \
	done
	@awk '/^[a-z]/ {keep = !/^(torch|triton|nvidia-.*|cuda-.*)==/} keep' requirements/train.txt > requirements/.train && mv requirements/.train requirements/train.txt

.PHONY: help setup train run test check fmt bench loop e2e soak ends lock
