# Needs python3 (3.11 or newer), pip and make. Every target may be repeated; the second run starts in seconds.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-input --retries 10 --timeout 180

MODEL := smollm2-135m
DOCUMENT := docs/demo/lighthouse-handbook.md
QUESTION := What is the combination of the stores safe?

.DEFAULT_GOAL := help
.PHONY: help demo test slow fuzz families check lint man bench model results clean

help:
	@echo "make demo    install, fetch the default model, ask a question of a real document"
	@echo "make test    the default tests: minutes, no GPU"
	@echo "make slow    every test but those for a GPU, with more examples: an hour"
	@echo "make fuzz    damaged files of every kind, a thousand each: ARGS='--kind preset --inputs 10000'"
	@echo "make families  try every family of models of transformers: the table of those that are supported"
	@echo "make check   lint, types, man pages, tests: what CI runs"
	@echo "make lint    ruff and mypy only;  make man    write the man pages again"
	@echo "make results write the long tables of docs/results from the results beside them"
	@echo "make bench   time and weigh against stock transformers;  make clean    remove what was built"

$(STAMP): pyproject.toml constraints.txt $(wildcard uncomp_cli/kernels/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed\nhint: make PYTHON=/path/to/python3.11")'
	@echo "installing into $(VENV) (the first time takes some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -c constraints.txt -e '.[documents,plot,quantize,serve,dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/uncomp model pull $(MODEL) >/dev/null
	@echo "$(DOCUMENT): $(QUESTION)"
	@$(BIN)/uncomp ask --model $(MODEL) -f $(DOCUMENT) "$(QUESTION)"

model: $(STAMP)
	@$(BIN)/uncomp model pull $(MODEL) >/dev/null

test: $(STAMP) model
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" -r fEs $(ARGS)

slow: $(STAMP) model
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu" --hypothesis-profile thorough -r fEs $(ARGS)

fuzz: $(STAMP)
	@$(BIN)/python tests/fuzz.py $(ARGS)

families: $(STAMP)
	@$(BIN)/python tests/census.py $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

man: $(STAMP)
	@$(BIN)/python man/generate.py

check: lint
	@$(BIN)/python man/generate.py --check
	@$(MAKE) --no-print-directory test

bench: $(STAMP) model
	@$(BIN)/uncomp bench --model $(MODEL) -f $(DOCUMENT) $(ARGS)

# The tables of more than 100 kB are not kept: they are made of the results, which are.
results: $(STAMP)
	@for name in eval uncertainty ablation; do \
	  gunzip -c docs/results/$$name.jsonl.gz > docs/results/$$name.jsonl && \
	  $(BIN)/uncomp eval --show --out docs/results/$$name.jsonl --markdown docs/results/$$name.md >/dev/null || exit 1; \
	  echo "docs/results/$$name.md"; \
	done

clean:
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
