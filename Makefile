PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := results/demo

# Two test processes with one thread each: more threads only compete.
export OMP_NUM_THREADS = 1

.PHONY: help demo venv lint test benchmark clean

help:
	@echo "make demo       train on synthetic speech and draw what early exits buy"
	@echo "make venv       install the package and its tools into .venv"
	@echo "make lint       check style: ruff, yamllint"
	@echo "make test       lint, then run all tests"
	@echo "make benchmark  measure what early exits save"
	@echo "make clean      remove .venv and caches"

venv: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/speechbrain-ee corpus $(DEMO)/corpus
	cd recipes/LibriSpeech && ../../$(BIN)/python train.py hparams/demo.yaml \
		--data_folder ../../$(DEMO)/corpus --output_folder ../../$(DEMO)/run
	@echo "The report: $(DEMO)/run/report.html"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --no-warnings .

test: lint
	$(BIN)/pytest -n 2 --dist loadgroup

benchmark: $(STAMP)
	$(BIN)/python benchmarks/early_exit.py conformer
	$(BIN)/python benchmarks/early_exit.py wav2vec2

clean:
	rm -rf .venv .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
