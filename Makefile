# `make demo` and `make test` set up a virtual environment in .venv and need nothing else than Python >= 3.10.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo reproduce notebooks test lint check-cuda steps release-check attack bench bench-compare bench-training golden docs docs-serve clean

demo: $(VENV)/.examples
	$(BIN)/python examples/demo.py $(ARGS)

# published results: ARGS="mnist1d --quick"; without ARGS, which there are and how long they take
reproduce: $(VENV)/.reproduce
	$(BIN)/python examples/reproduce.py $(ARGS)

# executes the notebooks and writes their outputs; ARGS=--check fails where a cell does and writes nothing
notebooks: $(VENV)/.notebooks
	$(BIN)/python examples/notebooks/run.py $(ARGS)

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.metal_host metal/*.metal metal/steps/*.metal

# every kernel's CUDA text by MLX's own compiler, without a GPU; goes on where an earlier run stopped
check-cuda: $(VENV)/.cuda
	$(BIN)/python -m tests.nvrtc $(ARGS)

# the kernel text of the package's own cells, to be read in metal/steps
steps: $(VENV)/.test
	$(BIN)/python -m tests.steps

# builds, and tries the wheel on each Python that is here; publishes nothing
release-check: $(VENV)/.release
	$(BIN)/python -m tests.release_check $(ARGS)

attack: $(VENV)/.test
	$(BIN)/python -m tests.attack $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks $(ARGS)

# the runs that `make bench` saved, side by side: ARGS="0001 0002" for some of them
bench-compare: $(VENV)/.bench
	$(BIN)/python -m pytest_benchmark --storage=file://out/bench/runs compare --group-by=name --columns=min,median,iqr,rounds $(ARGS)

# seconds of training to an accuracy, ours and torch's: ARGS=--quick for a minute
bench-training: $(VENV)/.bench
	$(BIN)/python benchmarks/training.py $(ARGS)

golden: $(VENV)/.bench
	$(BIN)/python tests/make_golden_ncps.py
	$(BIN)/python tests/make_golden_torch.py
	$(BIN)/python tests/make_golden_ncps_ltc.py

# warnings are errors; the pages are in out/docs
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -b html -W --keep-going -n $(ARGS) docs out/docs

docs-serve: docs
	$(BIN)/python -m http.server --directory out/docs --bind 127.0.0.1 $(or $(PORT),8000)

clean:
	rm -rf $(VENV) dist out docs/notebooks

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# one stamp an extra, so that the demo does not wait for the tools of the tests
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
