# make demo   photographs in, masks out: everything from set-up to pictures
# make test   set-up, then the whole test suite
# make help   the rest
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo-output
# The suite runs in three parts side by side, of about the same length. Tests that start Ray are in one, as clusters on one
# machine would meet; then those of models and pages, and the rest.
WITH_RAY := $(wildcard tests/integration/test_ray_*.py) tests/infra tests/pipeline/test_scaling.py
OF_MODELS := tests/masks tests/sam tests/parity tests/train tests/evaluation tests/bench tests/benchmarks \
	tests/viewer tests/human_audit tests/report tests/corrections tests/notebooks

.PHONY: help setup demo test test-slow lint format lock starter clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## Make .venv with locked dependencies.

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "The venv module is missing: install it (Debian: apt install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)  ## Mask the bundled photographs with the starter model, audit the result, draw pictures.
	rm -rf $(DEMO)
	$(BIN)/data-engine generate examples/photos $(DEMO)/masks --config quickstart --set input.recursive=false
	$(BIN)/data-engine audit $(DEMO)/masks
	$(BIN)/data-engine export $(DEMO)/masks $(DEMO)/pictures --format overlays
	@echo "Open the pictures in $(DEMO)/pictures"

test: $(READY)  ## Set up and run the test suite, in three parts side by side.
	@$(BIN)/python -m pytest $(WITH_RAY) > $(VENV)/tests-with-ray.log 2>&1 & with_ray=$$!; \
	nice $(BIN)/python -m pytest $(OF_MODELS) > $(VENV)/tests-of-models.log 2>&1 & of_models=$$!; \
	nice $(BIN)/python -m pytest $(WITH_RAY:%=--ignore=%) $(OF_MODELS:%=--ignore=%); others=$$?; \
	wait $$of_models; of_models=$$?; cat $(VENV)/tests-of-models.log; \
	wait $$with_ray; with_ray=$$?; cat $(VENV)/tests-with-ray.log; \
	[ $$others = 0 ] && [ $$of_models = 0 ] && [ $$with_ray = 0 ]

test-slow: $(READY)  ## The tests that take minutes each.
	$(BIN)/python -m pytest -m slow

lint: $(READY)  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Put the code into shape.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)  ## Renew constraints.txt: the newest versions that go together, on every supported Python.
	$(BIN)/python -m pip install --quiet uv
	printf 'torch==2.13.0\n' | $(BIN)/uv pip compile --universal --python-version 3.10 --extra dev --quiet \
		--no-header --no-annotate --no-emit-index-url --constraints - pyproject.toml | \
		grep -v -E '^(nvidia-|cuda-|setuptools)' | \
		sed '1i # The locked environment of `make setup`, for every supported Python. Made by `make lock`.' > constraints.new
	mv constraints.new constraints.txt

starter: $(READY)  ## Train the starter model again, from its recipe.
	$(BIN)/python -m data_engine.train --config configs/starter.yaml --output starter-output

clean:  ## Remove what make made.
	rm -rf $(VENV) $(DEMO) starter-output build dist .pytest_cache .mypy_cache .ruff_cache
