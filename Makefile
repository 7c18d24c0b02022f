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
	MYPYPATH=$(VENV)/typing $(BIN)/mypy $(foreach room,reference kernels model bench,-p zonos2_triton.$(room))

gate: $(READY)  ## compile every kernel for seven architectures, judge the result, compare it with the baseline
	$(BIN)/zonos2-triton compile

# On a GPU machine nothing is installed: its own Python, torch and Triton run the rooms where they lie.
gpu:  ## on a GPU: correctness, then timings, in under 9 minutes; elsewhere: what would run
	mkdir -p .gpu/zonos2_triton
	for room in kernels model reference bench; do ln -sfn "$(CURDIR)/$$room" .gpu/zonos2_triton/$$room; done
	PYTHONPATH=.gpu $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) -m zonos2_triton.bench.gpu $(GPU_OPTIONS)

bench: $(READY)  ## timings; on a CPU they say what the reference costs there
	$(BIN)/python -m pytest bench --benchmark-only

clean:
	rm -rf $(VENV) $(DEMO) .gpu build dist *.egg-info

# mypy does not follow an editable install of mapped folders; it finds the rooms through these links.
$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt torch
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt -e '.[dev]'
	mkdir -p $(VENV)/typing/zonos2_triton
	for room in kernels model reference bench; do ln -sfn "$(CURDIR)/$$room" $(VENV)/typing/zonos2_triton/$$room; done
	touch $@
