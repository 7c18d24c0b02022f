# Each target does its own set-up on a fresh machine: Python 3.11 or newer, no GPU needed.
PYTHON ?= python3
# Versions of everything: one file for each pair of torch and Triton that is tested.
LOCK ?= .ci/torch-2.15-triton-3.9.txt
VENV ?= .venv
BIN := $(VENV)/bin
# Another lock file makes the environment anew.
READY := $(VENV)/$(basename $(notdir $(LOCK)))
DEMO := .demo
PYTEST := $(BIN)/python -m pytest -n 2 --benchmark-disable

.NOTPARALLEL:
.PHONY: demo test test-full test-kernels lint gate gpu bench locks clean

demo: $(READY)  ## speak with a tiny model of random weights: a WAV file and a picture of it
	test -d $(DEMO)/tiny || $(BIN)/zonos2-triton tiny $(DEMO)/tiny
	$(BIN)/zonos2-triton say "Hello from a model that was never trained." --model $(DEMO)/tiny \
		--seed 7 --max-frames 344 --ignore-eos --out $(DEMO)/hello.wav --spectrogram $(DEMO)/hello.png

test: $(READY)  ## every kernel, every room and the whole pipeline
	$(PYTEST) -m "not slow"

# In one process: those that -n starts would not run under -O. The warning says what a test file does not concern.
test-full: $(READY)  ## what make test leaves out, python -O; the kernels on every other pair of torch and Triton
	$(PYTEST) -m "slow or hypothesis" --hypothesis-profile=full
	$(BIN)/python -O -m pytest -W ignore::pytest.PytestConfigWarning tests/integrations/dac/test_patch.py \
		tests/integrations/zonos2_engine/test_offline.py tests/model/test_pipeline.py tests/bench/test_plan.py
	$(BIN)/zonos2-triton compile
	for lock in $(filter-out $(LOCK),$(wildcard .ci/torch-*.txt)); do \
		$(MAKE) test-kernels LOCK=$$lock VENV=.venv-$$(basename $$lock .txt) || exit 1; done

test-kernels: $(READY)  ## the kernels alone: LOCK=.ci/torch-2.11-triton-3.6.txt VENV=.venv-3.6
	$(PYTEST) -m "not slow" tests/kernels
	$(BIN)/zonos2-triton compile --target sm_90

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p zonos2_triton

gate: $(READY)  ## compile every kernel for every architecture, check the binaries, compare them with the snapshot
	$(BIN)/zonos2-triton compile

# On a GPU machine nothing is installed: its own Python, torch and Triton run the rooms where they lie.
gpu:  ## on a GPU: correctness and timings, what is essential first, in under 9 minutes; elsewhere it says what would run, and fails
	PYTHONPATH="$(CURDIR)/.src" $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) -m zonos2_triton.bench.suite.gpu $(GPU_OPTIONS)

bench: $(READY)  ## timings; on a CPU they say what the reference costs there
	$(BIN)/python -m pytest bench --benchmark-only

# The oldest pair takes the lowest versions that pyproject.toml allows, the others the newest.
COMPILE := uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate --no-header --upgrade
locks:  ## resolve the lock files anew; needs uv
	printf 'torch==2.11.0\ntriton==3.6.0\n' | $(COMPILE) -c /dev/stdin --resolution lowest-direct -o .ci/torch-2.11-triton-3.6.txt
	printf 'torch==2.13.0\ntriton==3.7.1\n' | $(COMPILE) -c /dev/stdin -o .ci/torch-2.13-triton-3.7.txt
	printf 'torch==2.15.0\ntriton==3.9.0\n' | $(COMPILE) -c /dev/stdin -o .ci/torch-2.15-triton-3.9.txt

clean:
	rm -rf .venv* .gpu $(DEMO) build dist *.egg-info .src/*.egg-info

$(READY): pyproject.toml $(LOCK)
	$(PYTHON) -m venv --clear $(VENV)
	rm -rf *.egg-info
	$(BIN)/python -m pip install --quiet -c $(LOCK) -e '.[dev]'
	touch $@
