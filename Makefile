# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
BIN := .venv/bin
STUDY ?= quick
README ?= README.md
LONG := $(addprefix tests/test_,data.py dialog.py recipes.py train.py)

.PHONY: help setup report test bench lab docs readme clean
help: ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: .venv/ready ## create .venv and install the pinned requirements
.venv/ready: constraints.txt settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hybrid_nb needs Python 3.11 or later; found $(PYTHON). Name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch .venv/ready

report: setup ## run the quick study and write reports/quick.html
	$(BIN)/hybrid_sweep --study $(STUDY)
	$(BIN)/hybrid_report runs/$(STUDY) --out reports/$(STUDY).html

# Two jobs at a time, of one thread each: pytest on the tests that take longest, pytest on the others, and each notebook in a fresh process, since it defines
# operators that others import. A job's output is shown when it ends. Triton comes with Linux only.
.venv/tests: .venv/ready
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,tests]'
	@touch .venv/tests

test: .venv/tests ## check that notebooks and package agree, then test both
	$(BIN)/pytest -q tests/test_notebooks.py
	{ echo pytest -q $(LONG); echo pytest -q tests --ignore tests/test_notebooks.py $(LONG:%=--ignore %); \
	  ls nbs/*.ipynb | if $(BIN)/python -c 'import triton' 2>/dev/null; then cat; else grep -v triton; fi | sed 's/^/nbdev_test --path /'; } \
	| OMP_NUM_THREADS=1 xargs -L 1 -P 2 sh -c 'out=$$($(BIN)/"$$@" 2>&1); code=$$?; printf "%s: %s\n" "$$*" "$$out"; exit $$code' job

bench: setup ## measure the scan and the model beside their peers on the CPU, about ten minutes
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt mambapy
	$(BIN)/python reports/benchmarks/scan.py
	cd reports/benchmarks && ../../$(BIN)/papermill --log-level WARNING --no-progress-bar -k python3 scan.ipynb scan.ipynb

lab: setup ## open JupyterLab on the tour
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb

docs: setup ## render the notebooks as a site in _docs
	$(BIN)/pip install -q --disable-pip-version-check -e '.[docs]'
	$(BIN)/sphinx-build -q nbs _docs

readme: setup ## write README.md from nbs/index.ipynb
	@$(BIN)/jupyter nbconvert --log-level WARN --to markdown --stdout --RegexRemovePreprocessor.patterns='#\|\s*hide' \
	  --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=remove-input --TagRemovePreprocessor.remove_cell_tags=docs nbs/index.ipynb \
	  | sed -e 's|](\.\./|](|g' -e 's|](\([0-9a-z_]*\.ipynb\)|](nbs/\1|g' > $(README)

clean: ## remove .venv and what the tools cache; runs/ stays
	rm -rf .venv _docs *.egg-info .pytest_cache
