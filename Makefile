# make demo               the whole federation on this machine, with simulated hospitals
# make demo DATA=FOLDER   the same with hospital-a, hospital-b and hospital-c of FOLDER
# make test, make lint    what CI runs
# make images             the containers' images, with docker or podman; VARIANT=cuda for GPUs,
#                         TORCH_INDEX=URL where pip's own index has no torch of that variant,
#                         BASE=python:TAG@sha256:DIGEST to pin what they stand on
# PYTHON=python3.12 chooses another interpreter for the environment (3.11 or newer).
PYTHON ?= python3
INSTALLED = .venv/.installed

VARIANT ?= cpu
ENGINE ?= $(firstword $(foreach one,docker podman,$(if $(shell command -v $(one)),$(one))))
# Podman's own form of images has no health checks.
IMAGE = $(ENGINE) build $(if $(findstring podman,$(ENGINE)),--format docker) --build-arg VARIANT=$(VARIANT) \
  $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) $(if $(BASE),--build-arg BASE=$(BASE))

.PHONY: demo test lint images

demo: $(INSTALLED)
	@.venv/bin/python -m deploy.demo $(if $(DATA),--data $(DATA))

# Two at a time, a file each: half of what these tests do is wait for other processes.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

lint: $(INSTALLED)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

images:
	@test -n "$(ENGINE)" || { \
	  echo "make images needs docker or podman; neither is on the PATH" >&2; exit 1; }
	@case "$(VARIANT)" in cpu|cuda) ;; *) \
	  echo "VARIANT=$(VARIANT): choose cpu or cuda" >&2; exit 1;; esac
	$(IMAGE) -f deploy/aggregator/Dockerfile -t fedstill-aggregator:$(VARIANT) .
	$(IMAGE) -f deploy/site/Dockerfile -t fedstill-site:$(VARIANT) .
	$(IMAGE) -f deploy/site/Dockerfile --target trial -t fedstill-site-trial:$(VARIANT) .

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fedstill needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --progress-bar off -c constraints.txt -e '.[site,aggregator,dev]'
	@touch $@
