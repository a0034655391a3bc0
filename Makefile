# Every target makes .venv first where there is none, and refreshes it where pyproject.toml has changed.

BIN := .venv/bin

# Modules are compiled once, not by each of the many processes that tests begin.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test check docs bench peers validate validate-full environment clean

help:
	@echo "make demo      fit Old Faithful and write the results to bayesgmm-demo/"
	@echo "make test      all checks and tests"
	@echo "make check     format, lint, docstrings and types"
	@echo "make docs      the documentation as a site in build/docs"
	@echo "make bench     speed and memory beside other programs"
	@echo "make peers     JAX and NumPyro in an environment of their own, for make bench"
	@echo "make validate  calibration, coverage, criteria and evidence where the truth is known (an hour): tests/reference/validation.md; validate-full: more (hours)"
	@echo "make clean     remove the environment, caches and builds"

environment:
	@bash .ci/environment

demo: environment
	$(BIN)/bayesgmm demo

check: environment
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# What is compiled is compiled while format and types are checked, and by one process: two that compile side by side get other bits.
# The modules of the tests are compiled meanwhile.
test: environment
	@$(BIN)/bayesgmm warmup --quiet & warm=$$!; $(MAKE) --no-print-directory check || { kill $$warm; exit 1; }; \
		$(BIN)/python -m pytest --collect-only -qq >/dev/null 2>&1; wait $$warm
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

docs: environment
	@bash .ci/environment docs
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs
	@echo "the documentation is in build/docs: open build/docs/index.html"

bench: environment
	$(BIN)/python -m benchmarks

peers: environment
	$(BIN)/python -m venv .peers
	.peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/programs/requirements.txt

validate: environment
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest --hypothesis-profile=many tests/test_properties.py -n auto --maxprocesses 4
	$(BIN)/python -m benchmarks.validate --out build/validation.jsonl --markdown tests/reference/validation.md

validate-full: environment
	$(BIN)/python -m benchmarks.validate --full --out build/validation-full.jsonl --markdown build/validation-full.md

clean:
	rm -rf .venv .peers build dist docs/api docs/gallery .mypy_cache .pytest_cache .ruff_cache
	find . -type d -name __pycache__ -prune -exec rm -rf {} +
