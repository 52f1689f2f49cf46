# Every target makes the environment it needs; nothing but Python 3.11 is required.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Ray, OpenVINO, numba and torch together would start more threads than there are cores.
export OMP_NUM_THREADS ?= 1
BUILDER ?= docker build
TARGET ?= cpu
TAG ?= petavoxel:0.1.0-$(TARGET)

.PHONY: demo test check lint bench train chart image clean

demo: $(VENV)/.core ## segment a crop of FIB-25 that ships here, score it, and write a picture
	$(BIN)/petavoxel demo

test: $(VENV)/.dev ## all tests that need no GPU and no hour, in two processes: most of them wait for Ray and servers
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: lint ## what must pass before a commit
	$(BIN)/python -m pytest -q -m "not cluster and not slow and not gpu" -x

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## benchmarks; PETAVOXEL_DATA names the folder with the data sets
	$(BIN)/python -m pytest tests -m slow -s --timeout=7200

train: $(VENV)/.dev ## train the shipped network again: make train DATA=FOLDER RUN=FOLDER
	$(BIN)/petavoxel train models/zoo/fib25-affinity/train.yaml $(RUN) --data $(DATA)

chart: $(VENV)/.dev ## what is generated in the Helm chart: values.schema.json, README.md and the dashboard
	$(BIN)/python -m charts.generator

image: ## the CPU image; make image TARGET=gpu TAG=petavoxel:0.1.0-gpu, BUILDER="buildah bud" without Docker
	$(BUILDER) --target $(TARGET) --tag $(TAG) .

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null && PY=$(PYTHON) || PY=python3; \
	$$PY -c 'import sys; v = sys.version_info[:2]; sys.exit(v != (3, 11) and f"petavoxel needs Python 3.11, {sys.executable} is {v[0]}.{v[1]}; name one: make PYTHON=/path/to/python3.11")' \
	&& $$PY -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[train,dev]'
	@touch $(VENV)/.core $@

clean:
	rm -rf $(VENV) demo-out
