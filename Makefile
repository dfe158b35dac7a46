# `make demo` and `make test` do everything on a fresh machine: a virtual environment, the installation, the job.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo
BIN := $(abspath $(VENV))/bin
EXTRAS := app,serve,heic,fast,export,runtime,ray,parquet,sweep,tensorboard,mlflow,trackio,wandb
TOOLS := 'pytest>=8' 'pytest-xdist>=3.6' 'hypothesis>=6.100' 'httpx>=0.28' 'moto[server]>=5.1' 's3fs[boto3]'
# What a new version of a library is most likely to break: training, tagging, photos, the page, exported models, odd input,
# searches; and trackers, in a process of their own, since these libraries leave threads and servers behind.
ON_BOUNDS := $(wildcard $(addprefix tests/test_,training.py tagging.py odd_photos.py app.py api.py bundle.py pickles.py export.py \
             fuzz.py supply.py sweep.py large_tables.py distributed.py ray.py))

.PHONY: help demo test test-lowest test-newest docs sync licences sbom clean

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(VENV)/installed ## install, then train on sample photos and leave a tagger and pictures in demo/
	$(BIN)/deep_fashion demo --out $(OUT)

test: $(VENV)/installed-dev ## install with the dev extra, then check and test everything
	$(BIN)/python .ci/in_sync.py
	$(BIN)/ruff check .
	# Two notebooks at a time with a thread each: with two each they wait for one another most of the time.
	# What notebooks write for their readers takes 6 GB.
	scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && cd nbs && TMPDIR=$$scratch OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	# A file of tests stays on one worker, since its fixtures train.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests

test-lowest: .venv-lowest/installed ## test with the oldest versions that settings.ini allows
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -q -n 2 --dist loadfile $(ON_BOUNDS)
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -q tests/test_trackers.py

test-newest: .venv-newest/installed ## test with what a user gets today, the newest fastai among it
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -q -n 2 --dist loadfile $(ON_BOUNDS) tests/test_fastai.py
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -q tests/test_trackers.py

docs: $(VENV)/installed-dev ## build the documentation in _docs/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

sync: $(VENV)/installed-dev ## make modules and README from the notebooks
	PATH=$(BIN):$$PATH $(BIN)/python .ci/in_sync.py --write

licences: $(VENV)/installed-dev ## list the licences of all requirements in LICENCES.md
	$(BIN)/python .ci/licences.py --write

sbom: $(VENV)/installed-dev ## list what a release installs, extras included, in sbom.json (CycloneDX)
	$(PYTHON) -m venv --clear .venv-release
	.venv-release/bin/python -m pip install --quiet '.[$(EXTRAS)]'
	$(BIN)/cyclonedx-py environment --output-reproducible --output-format JSON --output-file sbom.json .venv-release
	rm -rf .venv-release

clean: ## remove what was made, the virtual environments too
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-release build *.egg-info .ruff_cache .pytest_cache sbom.json

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

.venv-lowest/installed: $(VENV)/installed-dev settings.ini setup.py
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[$(EXTRAS)]' $(TOOLS)
	touch $@

# By pip, as a user installs it; without the dev extra, which holds fastai and fastcore back.
.venv-newest/installed: settings.ini setup.py
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]' $(TOOLS)
	touch $@
