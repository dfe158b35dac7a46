# `make demo` and `make test` do everything on a fresh machine: a virtual environment, the installation, the job.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo
BIN := $(abspath $(VENV))/bin

.PHONY: help demo test docs sync clean

help: ## say what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(VENV)/installed ## install, then train on sample photos and leave a tagger and pictures in demo/
	$(BIN)/deep_fashion demo --out $(OUT)

test: $(VENV)/installed-dev ## install with the dev extra, then check and test everything
	$(BIN)/python .ci/in_sync.py
	$(BIN)/ruff check .
	# Two notebooks at a time with a thread each: with two each they wait for one another most of the time.
	cd nbs && OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	$(BIN)/python -m pytest -q tests

docs: $(VENV)/installed-dev ## build the documentation in _docs/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

sync: $(VENV)/installed-dev ## make modules and README from the notebooks
	PATH=$(BIN):$$PATH $(BIN)/python .ci/in_sync.py --write

clean: ## remove what was made, the virtual environment too
	rm -rf $(VENV) build *.egg-info .ruff_cache .pytest_cache

$(VENV)/python-made:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/installed: $(VENV)/python-made settings.ini setup.py
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/python-made settings.ini setup.py
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/installed
