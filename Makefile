# Everything runs in .venv, which the first target that needs it makes; `make test-more` makes others beside it.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
BIN := .venv/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
STUDY ?= quick
README ?= README.md

.PHONY: help setup report test test-more lint bench lab docs readme clean
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-9s  %s\n", $$1, $$2}'

setup: .venv/ready ## create .venv and install the pinned requirements
.venv/ready: constraints.txt settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hybrid_nb needs Python 3.11 or later; found $(PYTHON). Name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	.ci/install .venv $(PYTHON) constraints.txt dev
	@touch $@

report: setup ## run the quick study and write reports/quick.html
	$(BIN)/hybrid_sweep --study $(STUDY)
	$(BIN)/hybrid_report runs/$(STUDY) --out reports/$(STUDY).html

.venv/tests: .venv/ready
	$(PIP) -e '.[dev,tests]'
	@touch $@

lint: setup ## check package, notebooks and tests with ruff
	$(BIN)/ruff check --quiet

# Two jobs at a time, those that take longest first: the tests of a chapter, the notebooks of a chapter.
first = $(1) $(filter-out $(1),$(2))
TESTS := $(call first,$(addprefix tests/,training study data mixers models use),$(patsubst %/,%,$(sort $(dir $(wildcard tests/*/test_*.py)))))
NOTEBOOKS := $(call first,nbs/06_training nbs/08_use nbs/tutorials nbs/07_study,$(wildcard nbs/[0-9]* nbs/index.ipynb))

test: .venv/tests lint ## check that notebooks and package agree, then test both
	$(BIN)/pytest -q tests/test_house.py tests/test_notebooks.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/helpers/warm_kernels.py
	{ printf "$(BIN)/pytest -q -rs -m 'not more' %s\n" $(TESTS); \
	  printf "$(BIN)/python tests/run_notebooks.py %s\n" $(NOTEBOOKS); } | .ci/parallel

MORE ?= packages lowest
test-more: .venv/tests ## test what `make test` leaves out: further packages, the wheel, the lowest versions
	.ci/more $(MORE)

bench: setup ## measure the scan and the model beside their peers on the CPU, about ten minutes
	$(PIP) mambapy
	$(BIN)/python reports/benchmarks/scan.py
	cd reports/benchmarks && ../../$(BIN)/papermill --log-level WARNING --no-progress-bar -k python3 scan.ipynb scan.ipynb

lab: setup ## open JupyterLab on the tour
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb \
	  --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

docs: setup ## build the site in _docs: tutorials, chapters, reference
	$(PIP) -e '.[docs]'
	$(BIN)/sphinx-build -q -W --keep-going nbs _docs

readme: setup ## write README.md from nbs/index.ipynb
	@$(BIN)/jupyter nbconvert --log-level WARN --to markdown --stdout nbs/index.ipynb \
	  --RegexRemovePreprocessor.patterns='#\|\s*hide' --TagRemovePreprocessor.enabled=True \
	  --TagRemovePreprocessor.remove_input_tags=remove-input --TagRemovePreprocessor.remove_cell_tags=docs \
	  | sed -e 's|](\([0-9a-z][0-9a-z_/]*\.ipynb\)|](nbs/\1|g' -e 's|](guides/|](nbs/guides/|g' -e 's|](\.\./|](|g' > $(README)

clean: ## remove the environments and what the tools cache; runs/ stays
	rm -rf .venv .venv-* _docs nbs/_site *.egg-info .pytest_cache .ruff_cache
