# Everything here runs in .venv, which is made when it is missing.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PORT ?= 5000

# Attacks on shared cores are slower with more threads than with one.
export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help install demo compare-demo test test-long mutants chaos check docs transcripts bench mlflow clean

help:  ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

install: $(INSTALLED)  ## make .venv with the tested versions; all that follow do it as well

demo: $(INSTALLED)  ## fine-tune the shipped model on the shipped images as a Ray job; continues an interrupted demo
	@$(BIN)/python jobs/demo.py

compare-demo: $(INSTALLED)  ## compare AutoLoRa with searched baselines on the shipped images, about an hour on two cores
	@$(BIN)/python jobs/compare.py --study tuned_baselines --task fashion-mnist-5-9 --seeds 3

test: $(INSTALLED)  ## run the tests, but for the long ones
	@$(BIN)/python -m pytest -m "not long"

test-long: $(INSTALLED)  ## run the long tests, and the numerical ones without native bfloat16; more than half an hour on two cores
	@$(BIN)/python -m pytest -m long
	@ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -m "not long" tests/core tests/models tests/evaluation tests/training

mutants: $(INSTALLED)  ## put 60 small faults into the code, one at a time: does a test notice?
	@$(BIN)/python -m tests.mutants

chaos: $(INSTALLED)  ## fault injection: kill runs at random, 50 times, and compare the weights; about half an hour on two cores
	@$(BIN)/python -m tests.chaos --output chaos

check: $(INSTALLED)  ## check style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

docs: $(INSTALLED)  ## build docs/ as a site, build/site/index.html; a broken link ends it
	@$(BIN)/python -m zensical build --strict --clean && echo "Open build/site/index.html in a browser." && \
	echo "Its search works on a server: .venv/bin/python -m http.server --directory build/site"

transcripts: $(INSTALLED)  ## run the commands of docs/tutorials and write their output into the pages; about five minutes
	@$(BIN)/python -m tests.docs.transcripts

bench: $(INSTALLED)  ## measure speed on this machine: tables, and figures in bench/*.json; about 15 minutes on two cores
	@mkdir -p bench; for name in attack step workers autoattack reading startup memory; do \
	  echo; echo "== benchmarks/$$name.py"; \
	  $(BIN)/python benchmarks/$$name.py --output bench/$$name.json || exit 1; done

mlflow: $(INSTALLED)  ## show all runs at http://127.0.0.1:5000 (PORT=... for another port)
	@home="$$($(BIN)/python -c 'from distributed_autolora import config; print(config.output_home(config.RunConfig()))')"; \
	if [ ! -f "$$home/mlflow.db" ]; then \
	  echo "There is no tracking store at $$home/mlflow.db yet: run \`make demo\` first." >&2; exit 2; fi; \
	if ! $(BIN)/python -c 'import socket, sys; socket.create_server(("127.0.0.1", int(sys.argv[1])))' $(PORT) 2>/dev/null; then \
	  echo "Port $(PORT) of 127.0.0.1 cannot be used: choose another, as in \`make mlflow PORT=5001\`." >&2; exit 2; fi; \
	echo "Open http://127.0.0.1:$(PORT)/#/experiments/1?workflowType=machine_learning in a browser, in half a minute at most."; \
	echo "Ctrl-C ends the server."; \
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false PYTHONWARNINGS=ignore \
	exec $(BIN)/python -m mlflow server --backend-store-uri "sqlite:///$$home/mlflow.db" \
	  --artifacts-destination "$$home/mlartifacts" --host 127.0.0.1 --port $(PORT) --workers 1 \
	  --uvicorn-opts "--log-level critical"

clean:  ## remove .venv and caches; runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is done again. Of two at once, one waits and finds it done.
# A .venv that works is brought up to date in place: a run may be using it.
$(INSTALLED): pyproject.toml constraints.txt
	@exec 9>>pyproject.toml; if command -v flock >/dev/null; then flock 9; fi; \
	if [ $@ -nt pyproject.toml ] && [ $@ -nt constraints.txt ]; then exit 0; fi; \
	python=; for candidate in python3.11 python3.12 python3.13 python3; do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11 or newer with its venv module was found: install one (on Debian: python3 python3-venv)." >&2; \
	  exit 2; fi; \
	echo "Installing into $(VENV) with $$($$python --version); this takes some minutes the first time ..."; \
	rm -f $@ && \
	{ $(BIN)/python -m pip --version >/dev/null 2>&1 || $$python -m venv --clear $(VENV); } && \
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]' && \
	touch $@
