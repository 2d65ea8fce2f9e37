# `make demo` and `make test` are all a newcomer needs; each makes the virtual environment and installs first.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test test-slow lint types docs bench bench-metrics bench-formats bench-step bench-gpu bench-large bench-export bench-coverage bench-uncertainty bench-loading bench-load soak fuzz clean

demo: .venv/installed
	$(BIN)/clearmargin demo demo

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

bench: bench-metrics bench-formats bench-step bench-large bench-export bench-coverage bench-uncertainty bench-loading bench-load

bench-formats: .venv/installed
	$(BIN)/python benchmarks/bench_formats.py

# Not timed: how often margins hold, on units made here.
bench-coverage: .venv/installed
	PYTHONPATH=tests $(BIN)/python benchmarks/bench_coverage.py
	PYTHONPATH=tests $(BIN)/python benchmarks/bench_landmark_coverage.py

# MODEL=runs/x/model CARD=data_cards/x.yaml adds what members cost beside single predictions.
bench-uncertainty: .venv/installed
	$(BIN)/python benchmarks/bench_uncertainty.py $(if $(MODEL),--model $(MODEL)) $(if $(CARD),--card $(CARD))

bench-load: .venv/installed
	PYTHONPATH=tests $(BIN)/python benchmarks/bench_load.py

bench-loading: .venv/installed
	$(BIN)/python benchmarks/bench_loading.py

bench-metrics: .venv/installed
	$(BIN)/python benchmarks/bench_metrics.py

bench-step: .venv/installed
	$(BIN)/python benchmarks/bench_step.py

# On one NVIDIA GPU, under ten minutes; without one it runs on the CPU, for long.
bench-gpu: .venv/installed
	$(BIN)/python benchmarks/bench_gpu.py

bench-large: .venv/installed
	$(BIN)/python benchmarks/bench_large.py

bench-export: .venv/installed
	$(BIN)/python benchmarks/bench_export.py

# The site in site/, every warning an error. It is read without a network: open site/index.html, or serve it for the search.
docs: .venv/installed
	$(BIN)/python benchmarks/draw_results.py
	$(BIN)/zensical build --strict --clean

# 100,000 damaged files; RUN=n repeats a run, CASES=n shortens it, what fails is kept in fuzz/.
CASES ?= 100000
fuzz: .venv/installed
	PYTHONPATH=tests $(BIN)/python benchmarks/fuzz.py --cases $(CASES) $(if $(RUN),--run $(RUN))

# Batches under kill -9 of workers, of the coordinator, and between any two steps; ROUNDS=n, MODEL=folder (default: the demo's), ORTHANC=1.
ROUNDS ?= 50
soak: .venv/installed
	PYTHONPATH=tests $(BIN)/python benchmarks/soak.py --rounds $(ROUNDS) $(if $(ORTHANC),--orthanc) $(if $(MODEL),--model $(MODEL))

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-bench demo
