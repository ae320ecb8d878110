# hanse. `make demo` and `make test` are the two commands to know; each can be run again and does nothing twice.
#
#   make demo    text in four languages -> a trained model, its export and its report (runs/demo/)
#   make test    all tests but those of a cluster;  make quick  without the slow ones
#   make cluster jobs on a real Slurm of simulated nodes: root, Debian's Slurm packages, ten minutes;
#                make cluster-again  those that failed
#   make lint    ruff and mypy;  make docs  the site (site/);  make clean  what the tools left behind
#
#   PYTHON=python3.12       the Python that the virtual environment is built with (3.11 or newer)
#   VENV=.venv              where that environment stands
#   TORCH=torch==X.Y.Z      the build of torch, e.g. the one for your GPU (constraints.txt says more)

PYTHON ?= python3
VENV   ?= .venv

# On Linux the plain name may mean a build with CUDA, which is gigabytes: nobody gets that without asking.
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH  ?= torch==$(TORCH_VERSION)$(if $(filter Linux,$(shell uname -s)),+cpu)

SHELL := bash
export PATH := $(abspath $(VENV))/bin:$(PATH)
# pip compiles nothing: most of what is installed is never imported, and compiling it takes longer than downloading it.
# Python keeps what it compiles, even where the machine says otherwise: thousands of modules at each start would be slow.
export PYTHONDONTWRITEBYTECODE :=
# Tests side by side, a worker a processor, slow files first; more than four workers want more memory than time.
WHOLE_FILES := --dist=loadfile --no-loadscope-reorder
PYTEST := python -m pytest --numprocesses=logical --maxprocesses=4 $(WHOLE_FILES)
# Two workers, each with nodes of its own: half of the time these tests wait for a limit, or for silence to be noticed.
CLUSTER := python -m pytest tests/cluster -o cache_dir=.pytest_cache/cluster --numprocesses=2 $(WHOLE_FILES)
INSTALL := python -m pip install -qq --no-compile --constraint constraints.txt

.PHONY: demo test quick cluster cluster-again lint docs clean

demo: $(VENV)/.installed
	hanse corpus experiment=demo
	hanse tokenizer experiment=demo
	hanse tokenize experiment=demo
	hanse train experiment=demo
	hanse export experiment=demo
	hanse generate experiment=demo
	hanse report experiment=demo
	@echo "      (hanse is in $(VENV)/bin: source $(VENV)/bin/activate)"

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not cluster"

cluster: $(VENV)/.installed-dev
	$(CLUSTER)

cluster-again: $(VENV)/.installed-dev
	$(CLUSTER) --last-failed --last-failed-no-failures=none

quick: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

lint: $(VENV)/.installed-dev
	ruff check
	ruff format --check
	mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

clean:
	rm -rf site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# The virtual environment, in two steps: torch first, because its build is the one thing to choose.

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "make: installing hanse into $(VENV)"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	@echo "make: installing hanse and its development tools into $(VENV)"
	@$(INSTALL) --editable '.[dev,docs,interop,web,eval,ray,tensorboard,eldc]'
	@touch $@ $(VENV)/.installed

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "make: $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there), but hanse needs Python 3.11 or newer:" \
	  "name one, e.g. make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
	@"$${CXX:-c++}" --version >/dev/null 2>&1 || { echo \
	  "make: no C++ compiler ($${CXX:-c++}); DeepSpeed compiles a small part of itself at the first start:" \
	  "install one (Debian, Ubuntu: apt install g++) or set CXX" >&2; exit 1; }
	@test -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || { echo \
	  "make: the headers of $(PYTHON) are missing (Python.h); DeepSpeed compiles against them:" \
	  "install them (Debian, Ubuntu: apt install python3-dev)" >&2; exit 1; }
	@echo "make: creating $(VENV) with $(TORCH)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --upgrade pip
	@$(INSTALL) '$(TORCH)' || { echo \
	  "make: pip found no $(TORCH). Either tell pip where PyTorch's CPU builds are (PIP_EXTRA_INDEX_URL=..., the" \
	  "address that pytorch.org shows under 'Start locally', CPU), or take the build that your package index has:" \
	  "make $(firstword $(MAKECMDGOALS)) TORCH=torch==$(TORCH_VERSION)  (with CUDA on Linux: several GB)" >&2; exit 1; }
	@touch $@
