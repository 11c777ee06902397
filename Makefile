# make demo    the main job on the embedded synthetic dataset: progress, table, report
# make smollm2 brings a real language model (SmolLM2-135M-Instruct, 93 MB) into ~/.cache/rayunlearn, once; make demo-pretrained: the main job on it
# make test    the tests, in three processes; make test-slow: the rest
# make test-oldest  the same tests at the oldest versions that pyproject.toml allows, in an environment of their own
# make bench   ratios beside the plain way and beside an earlier commit, same machine, same run, then docs/performance.md from their Parquet; make bench-cluster: what the platform costs without any model
# make release builds wheel and sdist and tries them in bare environments: each Python at hand, each extra by itself
# make docs    the site, strictly, into build/site
# make findings  what is left of each experiment and how long it takes, then those, then docs/findings and docs/paper.md from their Parquet files (hours; finished trials are kept); make findings ONLY=control,pretrained_coreset: these alone; make findings PLAN=1: only what is left
# make check   style, formatting, types, the cluster files against their readers' schemas; then the style figures beside other projects'
# Everything is installed once into .venv, at the versions of constraints.txt; nothing else on the machine is touched.

VENV := .venv
BIN := $(VENV)/bin
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# The first interpreter of a supported version; `make PYTHON=/some/python3.12 demo` says which.
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)

.PHONY: demo smollm2 demo-pretrained test test-slow test-oldest bench bench-cluster release docs findings check format clean

demo: $(VENV)/installed
	$(BIN)/rayunlearn run experiments/hello.py

# Where it is there and whole, a second call does nothing; a damaged one is rebuilt.
smollm2: $(VENV)/installed-gguf
	$(BIN)/python -m rayunlearn.cli.smollm2

demo-pretrained: smollm2
	$(BIN)/rayunlearn run experiments/pretrained_demo.py

# Three on two cores: while one waits for Ray or the disk, two work. What is compiled is kept, whatever
# the environment says: tests start a hundred processes, and each would compile all it imports.
test: $(VENV)/installed-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow --timeout 1800

test-oldest: build/oldest/installed
	PYTHONDONTWRITEBYTECODE= build/oldest/bin/python -m pytest -n 3

build/oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv build/oldest
	@$(call new_pip,build/oldest)
	build/oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints-oldest.txt -e ".[dev]"
	@touch $@

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.commits
	$(BIN)/python -m benchmarks.scores
	$(BIN)/python -m benchmarks.scores --size small
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.corpus
	$(BIN)/python -m benchmarks.rungs_pool build/benchmarks/rungs
	$(BIN)/python -m benchmarks.rungs build/benchmarks/rungs
	$(BIN)/python -m benchmarks.rungs_sweep build/benchmarks/rungs
	$(BIN)/python -m benchmarks.page

bench-cluster: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.cluster

release: $(BIN)/python
	$(BIN)/python .ci/release.py

docs: $(VENV)/installed-dev
	$(BIN)/python -m rayunlearn.cli.listing > docs/settings.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

findings: $(VENV)/installed-dev
	$(BIN)/python -m experiments.findings.make $(if $(ONLY),--only $(ONLY)) $(if $(PLAN),--plan)

# `make check test` runs tests/test_deploy.py once, with the other tests, and so does `make check BESIDE=test` with a `make test` beside it.
check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(filter test,$(MAKECMDGOALS) $(BESIDE)),,$(BIN)/python -m pytest tests/test_deploy.py)
	$(BIN)/python .ci/style.py

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "rayunlearn needs Python 3.11, 3.12 or 3.13 as python3 (here: $$(python3 --version 2>&1)); or: make PYTHON=/path/to/python demo" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@$(call new_pip,$(VENV))

# What Python brings may be years old: pip 23.2 took 225 s of CPU for this environment, 26.3 took 66. Where it cannot be had, the old one does.
new_pip = $(1)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=26' || true
# setuptools warns of a folder named as its package, which is the package
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# pip would compile one file after the other; this takes every core. Some templates among the libraries are no Python and stay.
# Nearly half of all that is installed is never loaded here, or a file in a hundred of it, which Python then compiles itself.
SELDOM := /(tests?|transformers/models/(?!auto/|llama/)\w+|ray/(rllib|serve|llm)|plotly/(graph_objs|validators)|sympy/physics|moto|mlflow|databricks|wandb|mypy|debugpy|pygments/lexers)/
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '$(SELDOM)' $(VENV)/lib || true

# A call of pip for each stamp, and no two at once.
.NOTPARALLEL:

# The stamps: a second call installs nothing, and a changed dependency does.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing rayunlearn into $(VENV) (once; some minutes, most of them torch)"
	$(PIP) -e .
	@$(COMPILE)
	@touch $@

$(VENV)/installed-gguf: pyproject.toml constraints.txt | $(VENV)/installed
	$(PIP) -e ".[gguf]"
	@touch $@

# In one step with the rest: two calls of pip would look at every dependency twice.
$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing rayunlearn and what tests and checks need into $(VENV) (once; some minutes, most of them torch)"
	$(PIP) -e ".[dev]"
	@$(COMPILE)
	@touch $(VENV)/installed $(VENV)/installed-gguf $@
