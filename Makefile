# All of biox from one place; `make` alone lists what there is.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv repro report test lint bench real clean

PY := .venv/bin/python

# DVC starts papermill by name, and papermill starts a kernel of the same environment.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Nothing asks, nothing calls home, and every run hashes alike.
export DVC_NO_ANALYTICS := 1
export HF_HUB_OFFLINE := 1
export MNE_DONTWRITE_HOME := true
export JUPYTER_PLATFORM_DIRS := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export PYTHONHASHSEED := 0

help: ## this list
	@echo "biox: targets of make"
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1	\2/p' Makefile | expand -t 16

venv: .venv/.installed ## the environment in .venv, with the versions of requirements.txt
	@echo "The environment in .venv is up to date."

.venv/.installed: requirements.txt pyproject.toml
	@echo "Installing the environment into .venv (a minute or two the first time; details in .venv/install.log)."
	@for python in "$${PYTHON:-python3.11}" python3 python; do \
	  if "$$python" -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 12))' 2> /dev/null; then \
	    test -x $(PY) || "$$python" -m venv .venv; \
	    break; \
	  fi; \
	done
	@test -x $(PY) || { echo "biox needs Python 3.11, at least 3.11.5, and found none: install it," \
	  "or name it, as in: make venv PYTHON=/path/to/python3.11"; exit 1; }
	@echo "  $$($(PY) --version)"
	@$(PY) -m pip install --no-compile --progress-bar off -r requirements.txt 2>&1 | tee .venv/install.log \
	  | awk '/^(Collecting|Processing|Requirement already)/ && ++n % 25 == 0 { print "  found " n " packages" } \
	         /^Installing collected/ { print "  installing them" } /^ERROR/ { print } { fflush() }' \
	  || { echo "Could not install requirements.txt: see .venv/install.log"; exit 1; }
	@echo "  installing biox itself"
	@$(PY) -m pip install --no-compile --progress-bar off --no-deps -e . >> .venv/install.log 2>&1 \
	  || { tail -n 5 .venv/install.log; exit 1; }
# Notebook templates enter git without outputs; without .venv the filter lets them pass unchanged.
	@if git rev-parse --git-dir > /dev/null 2>&1; then git config filter.nbstripout.clean \
	  'if [ -x .venv/bin/nbstripout ]; then .venv/bin/nbstripout --keep-id; else cat; fi'; fi
	@touch $@
	@echo "Done. To work in it: source .venv/bin/activate"

repro: .venv/.installed ## the whole pipeline: data, models, bridges, tables, figures
	@echo "Running every stage whose code, settings or data changed, side by side (python -m biox repro)."
	@$(PY) -m biox repro
	@echo "Where to look: notebooks/executed/table1.ipynb and figures/tables/table1.md"

report: .venv/.installed ## what was executed, as linked pages in site/
	@echo "Turning executed notebooks into HTML (nbconvert); nothing is executed."
	@$(PY) -m biox report

test: .venv/.installed ## the tests
	@echo "Running the tests (pytest)."
	@$(PY) -m pytest -q --durations=10

lint: .venv/.installed ## style of code and notebooks
	@echo "Checking style and format (ruff)."
	@.venv/bin/ruff check biox tests notebooks
	@.venv/bin/ruff format --check biox tests notebooks

bench: .venv/.installed ## speed of the published model sizes beside the plain computation
	@echo "Timing forward passes on the CPU (a few minutes)."
	@$(PY) -m biox.bench
	@echo "Timing training and selection with the published models (a quarter of an hour)."
	@papermill notebooks/benchmark.ipynb notebooks/executed/benchmark.ipynb -p size published
	@echo "Where to look: notebooks/executed/benchmark.ipynb and figures/tables/benchmark.md"

real: ## bridges on real recordings: make real RECORDINGS=folder
	@test -n "$(RECORDINGS)" || { echo "Say where the recordings are: make real" \
	  "RECORDINGS=folder (BIDMC and EEGMAT; sources in THIRD_PARTY.md)."; exit 1; }
	@$(MAKE) --no-print-directory .venv/.installed
	@echo "Training the backbones if they changed (dvc repro pretrain)."
	@.venv/bin/dvc repro pretrain
	@echo "Training and scoring bridges on the recordings in $(RECORDINGS)."
	@$(PY) -m biox real --recordings "$(RECORDINGS)"

clean: ## remove caches; data, results and .venv stay
	@echo "Removing caches of Python, pytest, ruff, hypothesis and Jupyter."
	@find . \( -path ./.venv -o -path ./.git -o -path ./.dvc -o -path ./data \) -prune -o -type d \
	  \( -name __pycache__ -o -name .ipynb_checkpoints -o -name .pytest_cache \
	  -o -name .ruff_cache -o -name .hypothesis -o -name '*.egg-info' \) -exec rm -rf {} +
