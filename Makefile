# Every target sets up .venv (or .venv-vllm) by itself, once: again only when the dependencies change.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
VLLM   := .venv-vllm

# Tests never need the network, and never send anything.
TEST_ENV := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-vllm quality format typecheck imports docs package clean

help:       ## this list
	@grep -hE '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo,data,voxtral,dev,docs,web]"
	touch $@

setup: $(STAMP)     ## make .venv with the tested versions of everything

demo: $(STAMP)      ## train tiny-omni on spoken questions, two CPU cores, ten minutes; results in runs/demo
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE $(BIN)/python recipes/run_demo.py

test: $(STAMP)      ## the quick tests
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

test-slow: $(STAMP) ## the tests marked slow
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m slow

# vLLM reserves 1 GB for its cache. One thread, tied to no core: two that wait for each other starve on busy cores.
test-vllm: $(VLLM)/.installed ## the tests against a real vLLM, on the CPU, in an environment of its own
	$(TEST_ENV) VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 \
		$(VLLM)/bin/python -m pytest -p no:logging --timeout 600 -m slow tests/engine

$(VLLM)/.installed: setup.cfg pyproject.toml constraints.txt constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q -c constraints.txt -e ".[demo,data,dev]"
	$(VLLM)/bin/python -m pip install -q --no-deps -r constraints-vllm.txt
	touch $@

quality: $(STAMP)   ## lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)    ## apply both
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP) ## mypy over the package
	$(BIN)/mypy

imports: $(STAMP)   ## which room may import which
	$(BIN)/lint-imports

docs: $(STAMP)      ## the site, in site/; strictly and without network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel is installed into an empty folder, and imported from there, so that a forgotten file is noticed here.
package: $(STAMP)   ## build wheel and sdist in dist/, and check that the wheel is complete
	rm -rf build dist
	$(BIN)/python -m build -q --outdir dist .
	$(BIN)/python -m pip install -q --no-deps --target build/check dist/*.whl
	test -f build/check/tars_trl/py.typed
	cd build/check && ../../$(BIN)/python -c "import tars_trl; assert 'check' in tars_trl.__file__; print(tars_trl.__version__)"

clean:      ## remove builds and tool caches; .venv and runs stay
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
