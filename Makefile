# Every target sets up .venv first, where something is missing; `make` alone prints help.
PYTHON ?= python3
SETUP = $(PYTHON) tools/setup.py --quiet
BIN = .venv/bin
CLEAN = build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-figures test test-all lint bench bench-peers dist clean

help:  ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' Makefile

setup:  ## make .venv with foedus and its tools; a second run does nothing
	@$(PYTHON) tools/setup.py

demo:  ## run a real federation on this machine, with a picture at the end
	@$(SETUP)
	@$(BIN)/python examples/brain_tumour/demo.py

demo-figures:  ## compute the demo's table again, over five seeds
	@$(SETUP)
	@$(BIN)/python examples/brain_tumour/figures.py

test:  ## run the linters and all the tests but the long ones (at most 10 minutes on 2 cores)
	@$(SETUP) >&2
	@$(BIN)/python tools/test.py

test-all:  ## run the linters and all the tests
	@$(SETUP) >&2
	@$(BIN)/python tools/test.py --long

lint:  ## run ruff, mypy and the linter of the layers
	@$(SETUP) >&2
	@$(BIN)/python tools/test.py lint

bench:  ## measure, and write to benchmarks/results/
	@$(SETUP)
	@mkdir -p benchmarks/results
	@for file in benchmarks/*.py; do name=$$(basename $$file .py); echo "… $$name"; \
	$(BIN)/python $$file > benchmarks/results/$$name.json || exit 1; done
	@$(BIN)/python benchmarks/others/table.py benchmarks/results

bench-peers:  ## install the frameworks that foedus is measured beside, each in .venv-peers/NAME (2 GB)
	@$(SETUP)
	@$(BIN)/python benchmarks/others/install.py .venv-peers

dist:  ## build a wheel into dist/ and try it outside this folder
	@$(SETUP)
	@rm -rf dist
	@$(BIN)/python -m build --wheel --no-isolation
	@$(BIN)/python tools/check_wheel.py

clean:  ## remove what was built and cached; .venv stays
	@rm -rf $(CLEAN)
	@find src tests tools examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
