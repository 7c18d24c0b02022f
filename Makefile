# Each target does its own set-up on a fresh machine: Python 3.11 or newer, no GPU needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DEMO := .demo

.PHONY: demo test lint gate gpu bench clean

demo: $(READY)  ## speak with a tiny model of random weights: a WAV file and a picture of it
	test -d $(DEMO)/tiny || $(BIN)/zonos2-triton tiny $(DEMO)/tiny
	$(BIN)/zonos2-triton say "Hello from a model that was never trained." --model $(DEMO)/tiny \
		--seed 7 --max-frames 344 --ignore-eos --out $(DEMO)/hello.wav --spectrogram $(DEMO)/hello.png

test: $(READY)  ## the whole suite
	$(BIN)/python -m pytest

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p zonos2_triton

gate: $(READY)  ## compile every kernel for seven architectures, judge the result, compare it with the baseline
	$(BIN)/zonos2-triton compile

# On a GPU machine nothing is installed: its own Python, torch and Triton run the rooms where they lie.
gpu:  ## on a GPU: correctness, then timings, in under 9 minutes; elsewhere: what would run
	PYTHONPATH="$(CURDIR)/.src" $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) -m zonos2_triton.bench.suite.gpu $(GPU_OPTIONS)

bench: $(READY)  ## timings; on a CPU they say what the reference costs there
	$(BIN)/python -m pytest bench --benchmark-only

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info

$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt torch
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt -e '.[dev]'
	touch $@
