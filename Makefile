# Two commands on a fresh machine (Python 3.10+, make, a C compiler): make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Torch first: whatever else asks for torch then finds it installed.
TORCH ?= torch==2.13.0
DEMO ?= demo
STAMP = $(VENV)/.installed

.PHONY: demo test lint install clean

install: $(STAMP)

$(STAMP): setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable '.[tests]'
	touch $@

# A small BIDS data set (isotropic T1w, thick T2w and FLAIR with a lesion the T1w does not show), harmonised.
demo: $(STAMP)
	test -d $(DEMO)/bids || $(BIN)/gsrecon demo $(DEMO)/bids
	$(BIN)/bids_gsrecon $(DEMO)/bids $(DEMO)/derivatives participant --work-dir $(DEMO)/work --recon harmonize
	@echo "Report: $(abspath $(DEMO))/derivatives/sub-01.html"

# In two processes, each file in one of them; threads that wait for work would keep the other from working.
test: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q tests/test_packaging.py

clean:
	rm -rf $(DEMO) build dist *.egg-info
