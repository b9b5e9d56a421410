# Everything a developer needs; `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests with processes and clocks may miss a deadline on a busy machine: a second try, which the
# summary names.
RERUN := --reruns 1 -rR
COMPUTATION := not (gpu or measurement or realtime or page or serial)
# Hundreds of processes start in the tests; each would compile all its modules without stored bytecode.
export PYTHONDONTWRITEBYTECODE :=
WHEN_IDLE := $(if $(shell chrt --idle 0 echo works 2>/dev/null),chrt --idle 0,nice -n 19)

.DEFAULT_GOAL := help
.PHONY: help install check format test test-check test-clocks test-computation pipecat docs bot page nano bench-gpu clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## Create .venv with the package and all that its tests need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-compile --no-deps moshi==0.2.13  # a test peer: its model code only
	@touch $@

check: install  ## Style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## Let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install  ## Check, then run every test that needs no GPU
	@$(MAKE) --no-print-directory --jobs 3 test-check test-clocks test-computation

# Tests with processes and clocks wait half of the time. Checks and computation take only what they
# leave.
test-check:
	@$(WHEN_IDLE) $(MAKE) --no-print-directory check

test-clocks:
	$(BIN)/pytest -n 3 --dist loadfile $(RERUN) -m "realtime and not (gpu or measurement)"
	$(BIN)/pytest -n 2 --dist loadfile $(RERUN) -m "page and not (gpu or measurement)"
	$(BIN)/pytest $(RERUN) -m "serial and not (gpu or measurement)"

# First import all tests once, so that the workers find their bytecode.
test-computation:
	@mkdir -p build
	@$(WHEN_IDLE) $(BIN)/pytest --collect-only -q >build/collection.log 2>&1 || \
		{ cat build/collection.log; exit 1; }
	@$(WHEN_IDLE) $(BIN)/pytest -n 3 --dist worksteal $(RERUN) \
		-m "$(COMPUTATION)" >build/computation.log 2>&1; \
		status=$$?; cat build/computation.log; exit $$status

# Beside the installed version, whose dependencies it uses. A folder for each version.
PIPECAT ?= 1.13.0
OTHER_PIPECAT = $(CURDIR)/build/pipecat-$(PIPECAT)
pipecat: install  ## Run the tests of service, bots and page with another Pipecat; PIPECAT=1.13.0
	$(BIN)/pip install --quiet --upgrade --no-deps --target $(OTHER_PIPECAT) \
		'pipecat-ai$(if $(filter latest,$(PIPECAT)),<2,==$(PIPECAT))'
	@version='import importlib.metadata as m; print(m.version("pipecat-ai"))'; \
	other=$$(PYTHONPATH=$(OTHER_PIPECAT) $(BIN)/python -c "$$version"); \
	if [ "$$other" = "$$($(BIN)/python -c "$$version")" ]; then \
		echo "Pipecat $$other is the installed one: make test runs its tests"; \
	else \
		PYTHONPATH=$(OTHER_PIPECAT) $(BIN)/pytest -n 3 --dist worksteal $(RERUN) \
			tests/service tests/bots tests/talk -m "$(COMPUTATION)"; \
	fi

docs: install  ## Build the documentation site, in site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bot:  ## Talk to the best model for this machine in a browser; ARGS="--help"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test $(VENV)/.talk -nt pyproject.toml || test $(STAMP) -nt pyproject.toml || { \
		echo "installing into $(VENV); the first time takes minutes" && \
		$(BIN)/pip install -c constraints.txt -e '.[talk]' && touch $(VENV)/.talk; }
	@$(BIN)/python -m pipecat_personaplex.cli talk $(ARGS)

page:  ## Build the page of personaplex talk from web/src; needs Node
	cd web && npm ci --no-audit --no-fund && npm run check && npm run build

nano: install  ## Make the bundled nano model from nothing, in runs/nano: hours on two cores
	$(BIN)/pip install -c constraints.txt -e '.[voices]'
	$(BIN)/python -m training.nano codec autoencoder --minutes 60
	$(BIN)/python -m training.nano codec quantizer --minutes 20
	$(BIN)/python -m training.nano agent
	$(BIN)/python -m training.nano decoder --minutes 60
	$(BIN)/python -m training.nano record
	$(BIN)/python -m training.nano speak
	$(BIN)/python -m training.nano encoder --minutes 90
	$(BIN)/python -m training.nano clips
	$(BIN)/python -m training.nano lm --minutes 150
	$(BIN)/python -m training.nano export
	$(BIN)/python -m training.nano evaluate

bench-gpu:  ## Measure this machine's CUDA card, in runs/gpu; about ten minutes, no checkpoint needed
	@test -x $(BIN)/python && export PYTHON=$(BIN)/python; tests/gpu/measure.sh runs/gpu

clean:  ## Remove what the targets above made
	rm -rf $(VENV) web/node_modules .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist site
