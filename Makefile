# PYTHON is the interpreter everything runs with: the virtual environment's once `make venv` has made it.
PYTHON ?= $(if $(wildcard .venv/bin/python),$(CURDIR)/.venv/bin/python,python3)
export JAX_PLATFORMS ?= cpu

.PHONY: venv check test parity slow quickstart format

venv:  ## a virtual environment in .venv with everything that check needs
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet -e ".[test]"

check:  ## what must be clean before a commit: format, lint, types, the fast tests
	PYTHON="$(PYTHON)" .ci/check

test:  ## the fast tier, doctests included
	$(PYTHON) -m pytest -n 2 --dist loadfile

parity:  ## against torch, transformers and peft: pip install -e ".[parity]"
	$(PYTHON) -m pytest -n 2 --dist loadfile -m parity

slow:  ## full grids, kills, real models
	$(PYTHON) -m pytest -n 2 --dist worksteal -m slow

quickstart:  ## the main job
	$(PYTHON) -m jaxbig run experiments/quickstart.py

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
