# Everything a clone needs: Python 3.11 or newer and make. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements-cpu.lock
WORKERS ?= 2
# PyTorch's CPU wheels: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
DATA ?=
SIZES ?= 1 10 50

BIN := $(VENV)/bin
READY := $(VENV)/.installed
SYNTHETIC := data/raw/synthetic
BENCHMARKS := kernels.bench model.bench.step model.bench.inference model.bench.resume model.bench.reader model.bench.history \
    pipelines.bench_sources pipelines.bench_increments flows.bench_overhead

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench bench-data kill-loop wheel nights

help:
	@echo 'make demo            synthetic logs to an evaluated model and a report'
	@echo 'make demo DATA=DIR   the same on a folder with KuaiRand logs'
	@echo 'make test            all tests'
	@echo 'make lint            ruff, mypy and the import rules'
	@echo 'make bench           benchmarks, figures into bench/'
	@echo 'make kill-loop       kills the data stages at 20 random moments and looks at what is left'
	@echo 'make wheel           the code as a wheel in dist/, for the workers of a cluster'
	@echo 'make nights          thirty simulated nights with all that can happen, about a quarter of an hour'
	@echo 'make bench-data      the data plane at 1, 10 and 50 million events, bench/data.json; SIZES="1 10" for others'
	@echo 'make install         only makes $(VENV); add TORCH_INDEX=https://download.pytorch.org/whl/cpu for the small torch'

install: $(READY)

# A stamp inside the environment: an installation that was cut off is taken up again, a changed lock is installed.
$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	@echo 'Installing $(LOCK) into $(VENV), this takes some minutes the first time'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $(LOCK)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	@touch $@

demo: $(READY) $(if $(DATA),,$(SYNTHETIC))
	$(BIN)/hstu2 run --source kuairand --data '$(if $(DATA),$(DATA),$(SYNTHETIC))' $(if $(DATA),--set train.num_epochs=1)

$(SYNTHETIC): | $(READY)
	$(BIN)/hstu2 data synthesize $@ --num-events 200000 --seed 7

test: $(READY)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Each runs, whatever becomes of the others: one wants a GPU, another the data of a run.
bench: $(READY)
	@status=0; for module in $(BENCHMARKS); do $(BIN)/python -m $$module || status=1; done; exit $$status

kill-loop: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pipelines.bench.kill_loop $(ARGS)

# From a clean build folder: setuptools packs whatever an earlier build left there.
wheel: $(READY)
	rm -rf build
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist .
	rm -rf build
	@ls dist/*.whl

# A clone of the last commit in nights/; a run that was cut off goes on with: make nights FRESH=
FRESH ?= --fresh
nights: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m flows.nights $(FRESH)

# Makes its logs once, in data/bench; takes a quarter of an hour and 15 GB.
bench-data: $(READY)
	$(BIN)/python -m pipelines.bench_data --sizes $(SIZES) $(ARGS)
