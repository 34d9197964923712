# `make demo`, `make demo3d`, `make test`, `make check`, `make docs`, `make test-pytorch`: each sets up what it needs and runs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
DEMO_DIR ?= runs/quickstart
DEMO3D_DIR ?= runs/quickstart3d
# Tests on real images read this folder; they skip, with the reason, where it is not set.
export DEBLUR_MAE_DATA
export JAX_PLATFORMS ?=

.PHONY: demo demo3d test test-slow check docs test-pytorch setup lock clean

setup: $(VENV)/.ready
$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt | $(VENV)/.ready
	$(PIP) install -q -r requirements-dev.txt
	touch $@

# It sees the packages of $(VENV), which are not installed twice.
# Torch for Linux and Python 3.11, CPU build where the index has one; timm and torchvision without
# their dependencies, which would replace it by another build. That torchvision fails on a file that
# registers operators nobody here calls, so the environment starts with that file stubbed out.
SITE = import sysconfig; print(sysconfig.get_path("purelib"))
STUB = import sys, types; name = "torchvision._meta_registrations"; sys.modules.setdefault(name, types.ModuleType(name))
$(VENV)-pytorch/.ready: requirements-dev.txt Makefile | $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)-pytorch
	$(BIN)/python -c '$(SITE)' > $$($(VENV)-pytorch/bin/python -c '$(SITE)')/shared.pth
	$(VENV)-pytorch/bin/python -m pip --disable-pip-version-check install -q torch==2.13.0
	$(VENV)-pytorch/bin/python -m pip --disable-pip-version-check install -q --no-deps torchvision==0.28.0 timm==1.0.31
	echo torch==2.13.0 > $(VENV)-pytorch/constraints.txt
	$(VENV)-pytorch/bin/python -m pip --disable-pip-version-check install -q -c $(VENV)-pytorch/constraints.txt transformers==5.23.0 monai==1.6.1 pyyaml
	echo '$(STUB)' > $$($(VENV)-pytorch/bin/python -c '$(SITE)')/sitecustomize.py
	touch $@

demo: setup
	$(BIN)/python main.py --config=configs/quickstart.py --workdir=$(DEMO_DIR)
	$(BIN)/python main.py --config=configs/quickstart_finetune.py --config.init_from=$(DEMO_DIR) --workdir=$(DEMO_DIR)_classifier

demo3d: setup
	$(BIN)/python main.py --config=configs/quickstart3d.py --workdir=$(DEMO3D_DIR)
	$(BIN)/python main.py --config=configs/quickstart3d_segment.py --config.init_from=$(DEMO3D_DIR) --workdir=$(DEMO3D_DIR)_segmenter

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# PART=1/12 runs a twelfth of them, PART=12/12 the last.
test-slow: $(VENV)/.dev
	SLOW_PART=$(PART) $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) docs

# A warning, such as a broken link, is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# PART as above, for the slow ones among them.
test-pytorch: $(VENV)-pytorch/.ready
	SLOW_PART=$(PART) $(VENV)-pytorch/bin/python -m pytest -n 2 --dist worksteal tests/export "tests/test_notebooks.py::test_a_notebook_runs[export_to_pytorch]"

lock:
	uv pip compile --universal --python-version 3.11 --constraint requirements.in --generate-hashes pyproject.toml -o requirements.txt --no-header --no-annotate
	uv pip compile --universal --python-version 3.11 --constraint requirements.in --generate-hashes pyproject.toml --group dev -o requirements-dev.txt --no-header --no-annotate

clean:
	rm -rf site $(VENV) $(VENV)-pytorch .mypy_cache .ruff_cache
