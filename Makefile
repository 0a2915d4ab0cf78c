# All of biox from one place; `make` alone lists what there is.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv repro report test lint bench clean

PY := .venv/bin/python

# DVC starts papermill by name, and papermill starts a kernel of the same environment.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Nothing asks and nothing calls home.
export DVC_NO_ANALYTICS := 1
export HF_HUB_OFFLINE := 1
export MNE_DONTWRITE_HOME := true
export JUPYTER_PLATFORM_DIRS := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export PYTHONHASHSEED := 0

# Runs `dvc repro` and shows, in the place of its own messages and papermill's, one line when a stage begins
# and one when it ends. If there is something to do, two branches of the pipeline that share no stage run
# side by side, as DVC's manual has it, then all that is left.
define PROGRESS
import re, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from dvc.repo import Repo
begun, seen, repo = time.time(), set(), Repo()
total = len(repo.index.stages)
branches = [["*@wesad*", "sweep@*", "table2", "figure4", "ablations", "closed_form", "yours", "backbones"], ["*@isruc*", "*@fog*", "*@bidmc*", "*@eegmat*", "*@dreamer*", "folds"]]
quiet = r"$$|\[IPKernelApp\]|> papermill |Input Notebook|Output Notebook|Executing|(Generating|Updating) lock|To track|To enable|\tgit add|\tdvc config|Use .dvc push|Data and pipelines"
def repro(*targets):
    dvc = subprocess.Popen(["dvc", "--wait-for-lock", "repro", *targets], stdout=-1, stderr=-2, text=True, errors="replace")
    stage = since = None
    for line in dvc.stdout:
        found = re.match(r"(Running )?[Ss]tage '(.+?)'", line)
        if stage and (found or not re.match(quiet, line)):
            print(f"         {stage}: {time.time() - since:.0f} s", flush=True)
            stage = None
        if found:
            seen.add(found[2])
            if found[1]:
                stage, since = found[2], time.time()
                print(f"{len(seen):3}/{total}  {stage} runs, {total - len(seen)} remain", flush=True)
        elif not re.match(quiet, line):
            print(line, end="", flush=True)
    if stage: print(f"         {stage}: {time.time() - since:.0f} s", flush=True)
    return dvc.wait()
only = sys.argv[1:]
if not repo.status(targets=only or None, with_deps=bool(only)):
    print(f"Data and pipelines are up to date: {total} stages, {time.time() - begun:.0f} s")
    sys.exit()
failed = 0 if only else repro("pretrain", "dual_mask")
if not (failed or only):
    with ThreadPoolExecutor() as pool:
        failed = max(pool.map(lambda targets: repro("--single-item", "--glob", *targets), branches))
failed = failed or repro(*only)
print(f"dvc repro: {len(seen)} of {total} stages, {time.time() - begun:.0f} s")
sys.exit(failed)
endef
export PROGRESS

help: ## this list
	@echo "biox: targets of make"
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1	\2/p' Makefile | expand -t 16

venv: .venv/.installed ## the environment in .venv, with the versions of requirements.txt
	@echo "The environment in .venv is up to date."

.venv/.installed: requirements.txt pyproject.toml
	@echo "Installing the environment into .venv (some minutes the first time; details in .venv/install.log)."
	@for python in "$${PYTHON:-python3}" python3.13 python3.12 python3.11 python; do \
	  if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2> /dev/null; then \
	    test -x $(PY) || "$$python" -m venv .venv; \
	    break; \
	  fi; \
	done
	@test -x $(PY) || { echo "biox needs Python 3.11, 3.12 or 3.13 and found none: install one (on Debian and" \
	  "Ubuntu with python3-venv), or name it, as in: make venv PYTHON=/path/to/python3.12"; exit 1; }
	@echo "  $$($(PY) --version)"
	@$(PY) -m pip install --progress-bar off -r requirements.txt 2>&1 | tee .venv/install.log \
	  | awk '/^(Collecting|Processing|Requirement already)/ && ++n % 25 == 0 { print "  found " n " packages" } \
	         /^Installing collected/ { print "  installing them" } /^ERROR/ { print } { fflush() }' \
	  || { echo "Could not install requirements.txt: see .venv/install.log"; exit 1; }
	@echo "  installing biox itself"
	@$(PY) -m pip install --progress-bar off --no-deps -e . >> .venv/install.log 2>&1 \
	  || { tail -n 5 .venv/install.log; exit 1; }
# Notebook templates enter git without outputs; without .venv the filter lets them pass unchanged.
	@if git rev-parse --git-dir > /dev/null 2>&1; then git config filter.nbstripout.clean \
	  'if [ -x .venv/bin/nbstripout ]; then .venv/bin/nbstripout --keep-id; else cat; fi'; fi
	@touch $@
	@echo "Done. To work in it: source .venv/bin/activate"

repro: .venv/.installed ## the whole pipeline, or STAGES="..." of it: data, teachers, bridges, tables, figures
	@echo "Running every stage whose code, settings or data changed (dvc repro)."
	@$(PY) -c "$$PROGRESS" $(STAGES)
	@echo "Where to look: notebooks/executed/08_table1.ipynb and figures/tables/table1.md"

report: .venv/.installed ## what was executed, as a site in site/
	@echo "Building the site from README, executed notebooks and docstrings (MkDocs); nothing is executed."
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet
	@echo "Where to look: site/index.html"

test: .venv/.installed ## the tests
	@echo "Running the tests (pytest)."
	@$(PY) -m pytest -q -n auto --dist loadfile --durations=10

lint: .venv/.installed ## style of code and notebooks
	@echo "Checking style and format (ruff)."
	@.venv/bin/ruff check biox tests notebooks data docs
	@.venv/bin/ruff format --check biox tests notebooks data docs

bench: .venv/.installed ## pages that run on request: cost of a step at published sizes, few pairs, other pretraining
	@echo "Running three pages, one after another (about two hours)."
	@for page in 18_efficiency 26_pairs 27_stand_ins; do \
	  papermill "notebooks/$$page.ipynb" "notebooks/executed/$$page.ipynb"; \
	done
	@echo "Where to look: notebooks/executed and figures/tables."

clean: ## remove caches; data, results and .venv stay
	@echo "Removing caches of Python, pytest, ruff, hypothesis and Jupyter."
	@find . \( -path ./.venv -o -path ./.git -o -path ./.dvc -o -path ./data \) -prune -o -type d \
	  \( -name __pycache__ -o -name .ipynb_checkpoints -o -name .pytest_cache \
	  -o -name .ruff_cache -o -name .hypothesis -o -name '*.egg-info' \) -exec rm -rf {} +
