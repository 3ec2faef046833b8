# make demo               the whole federation on this machine, with simulated hospitals
# make demo DATA=FOLDER   the same with hospital-a, hospital-b and hospital-c of FOLDER
# make test, make lint    what CI runs
# PYTHON=python3.12 chooses another interpreter for the environment (3.11 or newer).
PYTHON ?= python3
INSTALLED = .venv/.installed

.PHONY: demo test lint

demo: $(INSTALLED)
	@.venv/bin/python -m deploy.demo $(if $(DATA),--data $(DATA))

test: $(INSTALLED)
	.venv/bin/python -m pytest

lint: $(INSTALLED)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fedstill needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --progress-bar off -c constraints.txt -e '.[site,aggregator,dev]'
	@touch $@
