# make demo     one real run, offline, and a report to look at
# make test     the tests
# make test-lowest  tests of what the libraries do for us, with the lowest versions that pyproject.toml accepts (but for torch)
# make nightly  more than 200 faults injected into runs, on one process and two (minutes)
# make bench    how fast an update is beside other trainers, and as work grows (half an hour; DATA=../shared/data, a mirror)
# make package  dist/ with wheel and source distribution; the wheel, in a venv of its own, runs a demo (some minutes)
# make check    formatting, lint, types
# make docs     the documents as a site, in build/site
# make format   put the formatting right
#
# Each sets up .venv first when it is missing or constraints.txt or pyproject.toml changed.
#
# PYTHON=...  the interpreter .venv is made from (3.11 or newer).
# TORCH=...   what to give `pip install` for torch, for instance TORCH='torch==2.13.0 --index-url URL'. Left out, it is the
#             version in constraints.txt, and only a CPU build is taken: CUDA builds are gigabytes, and nothing here needs one.

DATA ?= ../shared/data
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP = .venv/bin/python -m pip --disable-pip-version-check
purelib = import sysconfig; print(sysconfig.get_path("purelib"))
see-venv = .venv/bin/python -c '$(purelib)'
torch_pin = $(shell grep '^torch==' constraints.txt)

define CUDA_FOUND
This would install a CUDA build of torch. Choose one of the two:
  a CPU build:    make TORCH='$(torch_pin) --index-url URL' ..., where URL is the CPU index pytorch.org/get-started names
  the CUDA build: make TORCH='$(torch_pin)' ...
endef
export CUDA_FOUND

.PHONY: help demo test test-lowest nightly bench package check docs format

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: .venv/ready
	.venv/bin/prefinetune demo

test: .venv/ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

LOWEST = tests/test_model.py tests/test_export.py tests/test_resume.py tests/test_sources.py tests/test_store.py tests/test_families.py \
	tests/test_generation.py tests/test_cli.py tests/test_ranks.py

# Beside .venv, whose torch it uses: what is installed here goes before what is there.
test-lowest: .venv/ready
	.venv/bin/python -m venv .venv/lowest
	$(see-venv) >"$$(.venv/lowest/bin/python -c '$(purelib)')/venv.pth"
	.venv/lowest/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement constraints-lowest.txt
	HF_HUB_OFFLINE=1 PYTHONPATH=src .venv/lowest/bin/python -m pytest $(LOWEST)

nightly: .venv/ready
	HF_HUB_OFFLINE=1 PREFINETUNE_NIGHTLY=1 PREFINETUNE_FAULTS_OUT=$(CURDIR)/faults.json .venv/bin/python -m pytest tests/faults

# Peers beside Transformers: .venv/bin/pip install -c .venv/constraints.txt -r benchmarks/requirements.txt
bench: .venv/ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv/bin/python benchmarks/throughput.py --data $(DATA) --out throughput.json --chart throughput.html
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv/bin/python benchmarks/scaling.py --data $(DATA) --out scaling.json --chart scaling.html

# The wheel is built from the source distribution, so that this is known to be whole. The clean venv sees the installed versions
# of what the wheel needs, and nothing else of ours; pip says where they do not satisfy it.
package: .venv/ready
	rm -rf dist .venv/clean
	.venv/bin/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' >/dev/null
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	.venv/bin/python -m venv .venv/clean
	$(see-venv) >"$$(.venv/clean/bin/python -c '$(purelib)')/venv.pth"
	.venv/clean/bin/python -m pip --disable-pip-version-check install --quiet --no-index --force-reinstall --no-deps dist/*.whl
	cd .venv/clean && HF_HUB_OFFLINE=1 bin/prefinetune demo --quick && \
		bin/python -I -c 'import prefinetune; assert "/clean/" in prefinetune.__file__, prefinetune.__file__'
	@ls -l dist

check: .venv/ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

format: .venv/ready
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

.venv/ready: constraints.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; choose one with PYTHON=... (tried: '$(PYTHON)')"; exit 1; }
	@echo "Setting up .venv with $$("$(PYTHON)" --version) (once; some minutes)"
	@"$(PYTHON)" -m venv .venv
ifdef TORCH
	@echo "  $(TORCH)"
	@$(PIP) install --quiet $(TORCH)
else
	@echo "  $(torch_pin), a CPU build"
	@$(PIP) install --quiet --dry-run --report .venv/plan.json $(torch_pin)
	@! grep -Eq '"name": "(nvidia|cuda|triton|pytorch-triton)' .venv/plan.json || { echo "$$CUDA_FOUND"; exit 1; }
	@$(PIP) install --quiet $(torch_pin)
	@.venv/bin/python -W ignore -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' \
		|| { echo "$$CUDA_FOUND"; $(PIP) uninstall --quiet --yes torch; exit 1; }
endif
	@echo "  prefinetune and what it needs, in the tested versions"
	@grep -v '^torch==' constraints.txt > .venv/constraints.txt  # torch is there, whichever was chosen
	@$(PIP) install --quiet --use-pep517 --constraint .venv/constraints.txt --editable '.[dev,test-models,test-trackers]'
	@touch $@
