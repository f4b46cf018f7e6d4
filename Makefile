# Two commands are all a fresh machine needs (python3 >= 3.11 and make): `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test slow format clean

demo: $(READY)
	$(BIN)/ssl-ft demo out=runs/demo

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy ssl_ft pipelines
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Installed once; again when what is to be installed changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ssl_ft needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) runs build dist
